"""What becomes of memory that a worker has freed: it is kept for the next clip."""

from __future__ import annotations

import contextlib
import ctypes
import functools

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes for an array that is not to be given back at once.
_LARGEST_ARRAY_BYTES = 1 << 25
_KEPT_BYTES = 1 << 27


@functools.cache
def keep_freed_memory() -> None:
    """Have this process keep up to 128 MiB that it has freed; once is enough.

    By itself glibc gives every array above 128 KiB back to the system, to fault it in again, page by page, for the next
    clip: half of the time that features take.
    """
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such switches
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
