// Addresses of this machine.
import { isIP } from 'node:net'

/** Only programs of this machine can speak to it. */
export const isLoopback = (host: string) =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
