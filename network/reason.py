"""Why something failed, in one line that a user can act on."""

from __future__ import annotations

import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch

__all__ = ["message_of", "quiet", "reason_of"]

_MOST_CHARACTERS = 600
# What torch adds to its messages for its own developers.
_ASIDE_LINE = re.compile(r'For |If you suspect|The error above|Caused by|consider using|File "')
_ASIDE = re.compile(
    r"For more information, run with \S+|\(Size-like symbols: \w+\)|\(unhinted: [^()]*(\([^()]*\))?\)"
)


def message_of(error: BaseException) -> str:
    """The message of an error in one line, without what torch adds to it."""
    lines = [line.strip() for line in str(error).split("The following call raised")[0].splitlines()]
    kept = " ".join(line for line in lines if line and not _ASIDE_LINE.match(line))
    text = " ".join(_ASIDE.sub("", kept).split()).strip(" .;") or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def reason_of(error: BaseException) -> str:
    """The message of an error that the user's code raised or led to, with the last line of that code."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    if not own or not own[-1].line:
        return message_of(error)
    return f"{message_of(error)} (at {Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch warns, logs and prints about its own tracing and formats."""
    # For all loggers, because torch's have levels of their own.
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
