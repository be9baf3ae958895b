"""Memory that a closed bundle leaves behind.

The C library keeps freed pieces for later; a process that opens bundles one after another would grow by
what falls between the pieces. Invariant: only memory that nobody uses is given back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back_memory() -> bool:
    """Ask the C library to return free memory to the system; whether any was.

    Takes milliseconds: call it off the event loop. Does nothing where the library has no such call.
    """
    trim = _trim()
    return trim is not None and bool(trim(0))


@cache
def _trim() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc; None elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes = (ctypes.c_size_t,)
    trim.restype = ctypes.c_int
    found: Callable[[int], int] = trim
    return found


__all__ = ["give_back_memory"]
