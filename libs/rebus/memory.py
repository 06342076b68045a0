"""How a process treats memory: large buffers (messages, encoded media, pictures), and what never goes."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes.
MMAP_BYTES = 32 << 20
# Freed memory at the heap's end that is kept for the next buffers.
KEPT_BYTES = 64 << 20


@functools.cache
def keep_buffers() -> bool:
    """Lets freed buffers of up to ``MMAP_BYTES`` be used again, up to ``KEPT_BYTES`` of them in each of its arenas.

    glibc maps each large buffer anew and gives it back when it is freed, so that every page of every message and of
    every picture is faulted in by the kernel: half the time that a server spends on an upload, and more than a loader
    spends on reading. Returns whether the allocator took it; others than glibc's need no telling.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def keep_what_is_loaded() -> None:
    """Takes what exists by now, modules above all, out of the sight of garbage collections: it lives as long as the
    process, and looking through it again and again takes the processor's caches from the calls."""
    gc.collect()
    gc.freeze()
