// name_to_handle_at(2): a file is found by its number when the kernel has forgotten it, also by the next mount; NFS stands on that.
import { join } from 'node:path'
import { expect } from '@jest/globals'
import { runs } from '../fixtures/daemon.js'
import { requires } from '../fixtures/requires.js'
import { placeForTest } from '../fixtures/trees.js'

const { test } = requires('built', 'fuse', 'root', 'python3')

/** `make DIRECTORY` prints handles of what it makes; `open DIRECTORY HANDLE...` says what is behind each. */
const HANDLES = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
how, at, given = sys.argv[1], sys.argv[2], sys.argv[3:]
if how == 'make':
    os.makedirs(f'{at}/a/b')
    for n, name in enumerate(['a/b/deep', 'top', 'gone']):
        open(f'{at}/{name}', 'w').write(f'content {n}')
    for name in ['a/b/deep', 'top', 'a', 'gone']:
        handle, mount = Handle(bytes=128), ctypes.c_int()
        if libc.name_to_handle_at(-100, f'{at}/{name}'.encode(), ctypes.byref(handle), ctypes.byref(mount), 0):
            raise OSError(ctypes.get_errno(), name)
        print(handle.type, bytes(handle.data[:handle.bytes]).hex())
    os.unlink(f'{at}/gone')
else:
    root = os.open(at, os.O_RDONLY)
    for kind, data in zip(given[::2], given[1::2]):
        data = bytes.fromhex(data)
        handle = Handle(len(data), int(kind), (ctypes.c_ubyte * 128)(*data))
        fd = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
        if fd < 0:
            print(os.strerror(ctypes.get_errno()))
        elif os.path.isdir(f'/proc/self/fd/{fd}'):
            print(sorted(os.listdir(fd)))
        else:
            print(os.read(fd, 100).decode())
`

const handles = async (...args: string[]) => {
  const { status, stdout, stderr } = await runs('python3', ['-c', HANDLES, ...args])
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return stdout.trim().split('\n')
}

test('a handle finds its file when the kernel has forgotten it, and after the next mount', async () => {
  const place = await placeForTest()
  const first = await place.mount('--flush-interval', '50ms')
  const made = (await handles('make', place.mountpoint)).flatMap(line => line.split(' '))
  const wanted = ['content 0', 'content 1', "['b']", 'Stale file handle']
  const opened = async () => {
    expect((await runs('sh', ['-c', 'sync; echo 2 > /proc/sys/vm/drop_caches'])).status).toBe(0)
    return handles('open', place.mountpoint, ...made)
  }
  expect(await opened()).toEqual(wanted)
  await runs('mv', [join(place.mountpoint, 'top'), join(place.mountpoint, 'moved')])
  expect(await opened()).toEqual(wanted)
  expect(await first.unmount()).toBe(0)
  const next = await place.mount()
  expect(await opened()).toEqual(wanted)
  await next.unmount()
}, 60_000)
