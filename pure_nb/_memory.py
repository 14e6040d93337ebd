"""What the process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import lru_cache


@lru_cache(maxsize=1)
def keep_memory() -> None:
    """Let this process keep what it has freed, but for a free end of its heap above 2 GiB, where it runs on glibc.

    So it keeps about as much as it needed at a time; ``PURE_NB_GIVE_BACK=1`` in the environment leaves all as it is.
    glibc gives blocks as large as activations back at once, and gets them anew page by page: a third of the time of a
    ResNet-50's sweep in batches of 32, a tenth of that of virtual neurons. Numbers stay the same to the bit.
    """
    if platform.libc_ver()[0] == "glibc" and not os.environ.get("PURE_NB_GIVE_BACK"):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def give_memory_back() -> None:
    """Let this process keep nothing that it has freed, for now, so that its memory tells what it needs."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
