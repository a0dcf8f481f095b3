// ioctl request numbers, computed as <asm-generic/ioctl.h> does: a struct of the wrong size gives a wrong number, so the kernel refuses it.

const ioctl = (direction: number, magic: number, number: number, size: number) =>
  ((direction << 30) | (size << 16) | (magic << 8) | number) >>> 0

/** No argument. */
export const io = (magic: number, number: number) => ioctl(0, magic, number, 0)
/** The kernel reads `size` bytes. */
export const iow = (magic: number, number: number, size: number) => ioctl(1, magic, number, size)
/** The kernel writes `size` bytes. */
export const ior = (magic: number, number: number, size: number) => ioctl(2, magic, number, size)
/** The kernel reads and writes `size` bytes. */
export const iowr = (magic: number, number: number, size: number) => ioctl(3, magic, number, size)
