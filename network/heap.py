"""What happens to memory that tensors free."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back_freed_memory"]

# The C library's name for the least size that gets pages of its own.
M_MMAP_THRESHOLD = -3
OWN_PAGES_BYTES = 2**15


def give_back_freed_memory() -> bool:
    """Give tensors of 32 KiB and more pages of their own, which go back to the system when they are freed.

    The C library of Linux keeps freed tensors in a heap, whose gaps grow while a network is walked through:
    its peak then depends on the depth of the network, and not on the layers alone. The price is the system's
    time for new pages, which counts where most tensors are small.

    Returns
    -------
    bool
        Whether it is so from now on, in this whole process; false where the C library has no such setting.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES) == 1
