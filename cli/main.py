"""Entry of the command: runs the app and turns errors into one paragraph and an exit code."""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence

import torch
import typer
from rich.console import Console
from safetensors import SafetensorError

from ..errors import ApportionError
from .app import app

__all__ = ["main"]

OK, FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED = 130
"""What typer returns in the place of a KeyboardInterrupt."""
FILES = ("plan", "profile", "model", "data", "out")
"""Options that name files, as far as a command has them."""
SOON_S = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``allocate``; exits with 0 when done, 2 on bad input, 1 on anything else (interrupted, no memory).

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = None if arguments is None else list(arguments)
        with no_interrupt_lost():
            code = app(args=given, prog_name="allocate", standalone_mode=False)
    except ApportionError as error:
        return _complain(str(error), BAD_INPUT)
    except typer.TyperException as error:
        # How typer says that an argument is unknown, missing or out of range.
        return _complain(f"{error.format_message()}{_hint(error)}", BAD_INPUT)
    except (MemoryError, torch.OutOfMemoryError):
        return _complain("out of memory; lower --memory or --samples", FAILED)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except SafetensorError as error:
        # Reading refuses bad files by itself; this is writing, to a full disk for example.
        return _complain(f"cannot write: {error}", FAILED)
    if code == INTERRUPTED:
        return _complain(
            "interrupted; what is complete is kept, and the same command goes on from it", FAILED
        )
    return code if isinstance(code, int) else OK


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Interrupt again where Python drops an interrupt, as when one comes while memory is given back."""
    hook = sys.unraisablehook

    def again(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # Not at once: that would be dropped here.
            soon = threading.Timer(SOON_S, _thread.interrupt_main)
            soon.daemon = True
            soon.start()
        else:
            hook(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _hint(error: typer.TyperException) -> str:
    """How a command takes its files, where one of them stands without its option."""
    context = getattr(error, "ctx", None)
    if context is None or "unexpected extra argument" not in error.format_message():
        return ""
    options = [f"--{each.name}" for each in context.command.params if each.name in FILES]
    return f"; {context.command_path} takes files as {', '.join(options)}" if options else ""


def _complain(message: str, code: int) -> int:
    # One paragraph: a message may carry another library's line breaks.
    Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(
        f"error: {' '.join(message.split())}", markup=False
    )
    return code
