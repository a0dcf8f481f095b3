#!/usr/bin/env python3
"""A region as memory of a Python program: `pageferry memory serve REGION --socket PATH --share`, and then

    memory.py PATH

It is given the memory, maps it, and hands its userfaultfd over: pages come when they are touched. Needs nothing but Python (x86-64).
"""
import ctypes, fcntl, json, mmap, os, socket, struct, sys

SYS_USERFAULTFD = 323
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
MISSING, MINOR = 1, 4
MISSING_SHMEM, MINOR_SHMEM = 1 << 5, 1 << 10


class Region:
    """`bytes` is a memoryview (also for numpy.frombuffer). Keep the object: the server answers for as long as it lives."""

    def __init__(self, path: str):
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(path)
        said, (memfd,), _, _ = socket.recv_fds(self._line, 4096, 1)
        self.size = json.loads(said)["size"]
        # Private: what this program writes stays its own.
        self._map = mmap.mmap(memfd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        os.close(memfd)
        self._uffd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._uffd, UFFDIO_API, struct.pack("QQQ", 0xAA, MISSING_SHMEM | MINOR_SHMEM, 0))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        fcntl.ioctl(self._uffd, UFFDIO_REGISTER, struct.pack("QQQQ", address, self.size, MISSING | MINOR, 0))
        mapping = {"base_host_virt_addr": address, "size": self.size, "offset": 0, "page_size": mmap.PAGESIZE}
        socket.send_fds(self._line, [json.dumps([mapping]).encode()], [self._uffd])
        self.bytes = memoryview(self._map)


if __name__ == "__main__":
    region = Region(sys.argv[1])
    numbers = region.bytes.cast("Q")
    middle = len(numbers) // 2
    print(f"{region.size} bytes, in the middle {numbers[middle]}, at the end {numbers[-1]}")
    numbers[0] = 7
    print(f"written: {numbers[0]}, sum of the last 1,000: {sum(numbers[-1000:])}")
