// What a directory's file system can keep, from statfs(2) and our own rights. Nothing is tried out: the directory is not ours.
import fs from 'node:fs'
import { listxattr } from '../linux/xattr.js'
import { errnoName, PATH_BYTES_MAX } from './file-io.js'
import type { TreeCapabilities } from './tree.js'

interface FileSystemKind {
  /** All extended attributes of a file together. */
  xattrBytesMax?: number
  fileBytesMax?: number
  /** No owners, links or special files: FAT and its kin. */
  plain?: boolean
}

// The magic numbers of linux/magic.h.
const kinds: Record<number, FileSystemKind> = {
  // One block beside the inode; the file: 2^32 blocks.
  61267: { xattrBytesMax: 4000, fileBytesMax: 2 ** 44 - 4096 },
  19780: { fileBytesMax: 2 ** 32 - 1, plain: true },
  538032816: { plain: true },
}

const XATTR_BYTES_MAX = 65536
/** linux/limits.h */
const NAME_MAX = 255

const CAP_CHOWN = 0n
const CAP_MKNOD = 27n

/** The capabilities that this process really has, see capabilities(7). */
function effectiveCapabilities(): bigint {
  const line = /^CapEff:\s*([0-9a-f]+)$/m.exec(fs.readFileSync('/proc/self/status', 'latin1'))
  return BigInt(`0x${line?.[1] ?? '0'}`)
}

export async function treeCapabilities(directory: Buffer): Promise<TreeCapabilities> {
  const { type } = await fs.promises.statfs(directory)
  const { plain = false, xattrBytesMax = XATTR_BYTES_MAX, fileBytesMax = Number.MAX_SAFE_INTEGER } = kinds[type] ?? {}
  const may = (capability: bigint) => ((effectiveCapabilities() >> capability) & 1n) === 1n
  return {
    // What cannot be written to now may be so again while it is mounted, and then takes what has waited.
    write: true,
    hardLinks: !plain,
    symlinks: !plain,
    specialFiles: !plain && may(CAP_MKNOD),
    owners: !plain && may(CAP_CHOWN),
    xattrBytesMax: hasXattrs(directory) ? xattrBytesMax : 0,
    nameBytesMax: NAME_MAX,
    pathBytesMax: PATH_BYTES_MAX,
    fileBytesMax,
    patch: true,
  }
}

function hasXattrs(directory: Buffer): boolean {
  try {
    listxattr(directory)
    return true
  } catch (error) {
    if (errnoName(error) === 'EOPNOTSUPP' || errnoName(error) === 'ENOTSUP') return false
    throw error
  }
}
