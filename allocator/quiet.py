"""Standard output is the caller's, standard error is for messages; what compiled solvers print is dropped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

__all__ = ["without_solver_output"]

OUT = 1


@contextlib.contextmanager
def without_solver_output() -> Iterator[None]:
    """Drop what is written to the process's standard output, by compiled code too.

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
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), OUT)
        yield
    finally:
        # The C library keeps lines back when it writes to a pipe, and would write them after the return.
        with contextlib.suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, OUT)
        os.close(kept)
