"""Keeps the memory of large buffers in the process, for work that allocates and frees them all the time."""

from __future__ import annotations

import ctypes
import functools

# glibc's mallopt(3): parameters of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# Larger buffers than this still go back to the system at once.
KEPT_BUFFER_BYTES = 32 << 20
# Free memory that an arena of the allocator may keep at its top.
KEPT_FREE_BYTES = 64 << 20


@functools.cache
def keep_freed_buffers() -> bool:
    """Lets malloc reuse freed buffers of up to ``KEPT_BUFFER_BYTES`` in this process; False where it is not glibc's.

    By default each block of encoded media and each decoded picture comes as fresh pages, and the faults of these cost
    more than reading the bytes from the page cache. Each of the allocator's arenas may keep ``KEPT_FREE_BYTES`` more.
    Only the first call does anything.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, KEPT_BUFFER_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES))
