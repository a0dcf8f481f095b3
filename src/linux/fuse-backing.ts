// Files that the kernel may read instead of asking a FUSE daemon: include/uapi/linux/fuse.h, fs/fuse/backing.c (Linux 6.9).
import { ioctl } from './libc.js'

const BACKING_OPEN = 0x4010_e501 // _IOW(229, 1, struct fuse_backing_map)
const BACKING_CLOSE = 0x4004_e502 // _IOW(229, 2, uint32_t)
const MAP_BYTES = 16

/**
 * The kernel's number for the file of a descriptor, which can be closed afterwards. `fuse`: of /dev/fuse.
 * @throws NOT_PERMITTED (without CAP_SYS_ADMIN), INVALID, IO (ELOOP: the file lies on a file system that is stacked itself)
 */
export function openBacking(fuse: number, fd: number): number {
  const map = new Uint8Array(MAP_BYTES)
  new Int32Array(map.buffer)[0] = fd
  return ioctl(fuse, BACKING_OPEN, map)
}

/** Who has it open goes on. */
export function closeBacking(fuse: number, id: number): void {
  ioctl(fuse, BACKING_CLOSE, new Uint8Array(Uint32Array.of(id).buffer))
}
