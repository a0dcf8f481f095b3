// A file by its inode number instead of a name: open_by_handle_at(2), for FUSE.

import { checked, self } from './libc.js'

const openCall = self.func('open_by_handle_at', 'int', ['int', 'void *', 'int']) as (
  mountFd: number,
  handle: Uint8Array,
  flags: number,
) => number
const syncCall = self.func('sync_file_range', 'int', ['int', 'int64_t', 'int64_t', 'uint']) as (
  fd: number,
  at: number,
  length: number,
  flags: number,
) => number

const syncfsCall = self.func('int syncfs(int fd)') as (fd: number) => number

/** FILEID_INO64_GEN of <linux/exportfs.h>: what FUSE makes of nodeid and generation. */
const FILEID_INO64_GEN = 0x81
const HANDLE_BYTES = 12

/**
 * Opens an inode of a FUSE mount that the kernel has in its cache, under whatever name, or none. `mountFd` is any open file or
 * directory of that mount. Needs CAP_DAC_READ_SEARCH.
 * @throws STALE (the kernel does not know it any more), NOT_PERMITTED
 */
export function openInode(mountFd: number, nodeid: number, flags: number): number {
  const handle = new Uint32Array(2 + HANDLE_BYTES / 4)
  // struct file_handle { unsigned bytes; int type; }, then fid[3] of fuse_encode_fh; our generation is always 0.
  handle.set([HANDLE_BYTES, FILEID_INO64_GEN, Math.floor(nodeid / 2 ** 32), nodeid >>> 0, 0])
  return checked(openCall(mountFd, new Uint8Array(handle.buffer), flags), 'open_by_handle_at', `inode ${nodeid}`)
}

/** WAIT_BEFORE, WRITE and WAIT_AFTER. */
const WRITE_AND_WAIT = 7

/** Writes all dirty pages of a file and waits for them, without the inode's lock and without an fsync. sync_file_range(2) */
export const writePages = (fd: number): void => {
  checked(syncCall(fd, 0, 0, WRITE_AND_WAIT), 'sync_file_range')
}

/** Writes everything that is dirty in the file system of this file. syncfs(2) */
export const syncFileSystem = (fd: number): void => {
  checked(syncfsCall(fd), 'syncfs')
}
