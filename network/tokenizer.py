"""What cuts texts into tokens: files of the tokenizers library and of SentencePiece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import Array
from .reason import message_of

__all__ = ["load_tokenizer"]

NAMES = ("tokenizer.json", "tokenizer.model")
_MOST_BYTES = 2**28

Encode = Callable[[str], Array]


def load_tokenizer(path: Path) -> Encode:
    """What turns a text into its token ids, int64, without special tokens of the tokenizer's own.

    Parameters
    ----------
    path : Path
        A `tokenizer.json`, a SentencePiece `.model`, or a folder that has a `tokenizer.json` or else a
        `tokenizer.model`.

    Raises
    ------
    InputError
        There is none, it cannot be read, or the package that reads it is not installed.
    """
    named = [path / name for name in NAMES] if path.is_dir() else [path]
    file = next((each for each in named if each.is_file() and each.suffix in (".json", ".model")), None)
    if file is None:
        raise InputError(
            f"there is no {' or '.join(NAMES)} in {path}; give a folder that has one, or the file, with "
            "--tokenizer; other forms become one when the transformers library saves them by save_pretrained"
        )
    if file.stat().st_size > _MOST_BYTES:
        raise InputError(f"{file} has {file.stat().st_size:,} bytes; tokenizers of at most 256 MiB are read")
    return _of_tokenizers(file) if file.suffix == ".json" else _of_sentencepiece(file)


def _of_tokenizers(file: Path) -> Encode:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            f"reading texts needs the package tokenizers ({error}); install it with: "
            'pip install "apportion[transformers]"'
        ) from error
    tokenizer = _read(file, Tokenizer.from_file)
    # A text is cut into windows here, so that all of it counts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def _of_sentencepiece(file: Path) -> Encode:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise InputError(
            f"reading {file} needs the package sentencepiece ({error}); install it with: "
            'pip install "apportion[sentencepiece]"'
        ) from error
    processor = _read(file, SentencePieceProcessor)
    return lambda text: np.asarray(processor.encode(text), dtype=np.int64)


def _read(file: Path, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(file))
    except Exception as error:
        raise InputError(f"cannot read the tokenizer {file}: {message_of(error)}") from error
