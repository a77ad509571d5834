"""Standard output belongs to the caller: what compiled solvers print goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

__all__ = ["solver_output_apart"]

OUT, ERROR = 1, 2


@contextlib.contextmanager
def solver_output_apart() -> Iterator[None]:
    """Send what is written to the process's standard output, by compiled code too, to standard error.

    Some versions of HiGHS print lines that no option turns off, which would end up in the middle of a
    caller's JSON.
    """
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stdout.flush()
    try:
        kept = os.dup(OUT)
    except OSError:  # a process without standard output
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(ERROR, OUT)
        yield
    finally:
        # The C library keeps lines back when it writes to a pipe, and would write them after the return.
        with contextlib.suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, OUT)
        os.close(kept)
