import type { Driver } from './driver.js'
export const fuseNative: Driver = {
  name: 'fuse-native',
  mount: () => Promise.reject(new Error('todo')),
}
