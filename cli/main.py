"""Entry of the command: runs the app and turns errors into one paragraph and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console

from ..errors import ApportionError
from .app import app

__all__ = ["main"]

OK, FAILED, BAD_INPUT = 0, 1, 2


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
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except ApportionError as error:
        return _complain(str(error), BAD_INPUT)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return OK
    except click.ClickException as error:
        return _complain(error.format_message(), BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        return _complain(
            "interrupted; what is complete is kept, and the same command goes on from it", FAILED
        )
    except MemoryError:
        return _complain("out of memory; lower --memory or --samples", FAILED)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    return code if isinstance(code, int) else OK


def _complain(message: str, code: int) -> int:
    # One paragraph: a message may carry another library's line breaks.
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"error: {' '.join(message.split())}", markup=False
    )
    return code
