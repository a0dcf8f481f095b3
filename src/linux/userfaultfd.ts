// userfaultfd(2): a descriptor, and what its callers need of this process's addresses.
import { closeSync, constants, openSync } from 'node:fs'
import koffi from 'koffi'
import { FerryError } from '../base/errors.js'
import { checked, errno, lastErrno, self } from './libc.js'

const SYS_USERFAULTFD = 323
const O_CLOEXEC = 0o2000000
const DEVICE = '/dev/userfaultfd'
/** USERFAULTFD_IOC_NEW of <linux/userfaultfd.h>; the argument is flags. */
const NEW = 0xaa00

const syscall = self.func('syscall', 'int64_t', ['int64_t', 'int64_t']) as (number: number, flags: number) => number
const ioctlNumber = self.func('int ioctl(int fd, unsigned long request, unsigned long argument)') as (
  fd: number,
  request: number,
  argument: number,
) => number
const ioctlStruct = self.func('int ioctl(int fd, unsigned long request, void *argument)') as (
  fd: number,
  request: number,
  argument: Uint8Array,
) => number

/** Where bytes lie in this process. They stay there as long as their buffer is neither transferred nor collected. */
export const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes))

/** ioctl(2) without exceptions: errno (positive), or 0. The struct is changed in place. */
export const tryIoctl = (fd: number, request: number, argument: Uint8Array): number =>
  ioctlStruct(fd, request, argument) === -1 ? lastErrno() : 0

/**
 * A new descriptor, not waiting and close-on-exec.
 * @throws UNSUPPORTED: the kernel has none; NOT_PERMITTED: this user may not
 */
export function openUserfaultfd(): number {
  const flags = O_CLOEXEC | constants.O_NONBLOCK
  const fd = syscall(SYS_USERFAULTFD, flags)
  if (fd !== -1) return fd
  if (lastErrno() === errno.ENOSYS) throw new FerryError('UNSUPPORTED', { detail: 'this kernel has no userfaultfd' })
  try {
    const device = openSync(DEVICE, 'r+')
    try {
      return checked(ioctlNumber(device, NEW, flags), 'ioctl', DEVICE)
    } finally {
      closeSync(device)
    }
  } catch (error) {
    throw new FerryError('NOT_PERMITTED', {
      cause: error,
      detail: `userfaultfd needs root, a ${DEVICE} that this user may open, or sysctl vm.unprivileged_userfaultfd=1`,
    })
  }
}
