"""Keep freed memory instead of giving it back: a training step asks for the same blocks again and again.

With glibc's defaults every large tensor is mapped, zeroed page by page and unmapped, which took 15% of a step of a 2.5M model.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Tell glibc not to unmap; False where there is no glibc. Holds for the rest of the process."""
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError):  # musl
        return False
