"""Texts as token ids: a tokenizer, windows of one length, and the next token as the label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .arrays import Array
from .network import Network
from .reason import message_of
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from .data import Data

__all__ = ["cut_windows", "read_text", "with_next_tokens"]

_MOST_TEXT_BYTES = 2**30
_CHARACTERS_PER_TOKEN = 16
# Relative to the largest output: what another order of the same sums may change.
_SAME = 1e-3


def read_text(path: Path, tokenizer: Path | None, most_tokens: int | None) -> Array:
    """Token ids of a text file, one after another, without special tokens of the tokenizer's own.

    Parameters
    ----------
    tokenizer : Path, optional
        See `load_tokenizer`.
    most_tokens : int, optional
        So many are enough.

    Returns
    -------
    int64 array, shape (tokens,)

    Raises
    ------
    InputError
        No such text or tokenizer, not UTF-8, too large, or what reads the tokenizer is not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if tokenizer is None:
        raise InputError(
            f"{path} is a text; give --tokenizer, a tokenizer.json, a SentencePiece .model or a folder with "
            "one"
        )
    encode = load_tokenizer(tokenizer)
    if path.stat().st_size > _MOST_TEXT_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes; texts of at most 1 GiB are read")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"cannot read {path}: {message_of(error)}; texts must be UTF-8") from error
    if most_tokens is not None:
        start = encode(text[: _CHARACTERS_PER_TOKEN * most_tokens])
        # The cut may go through a token.
        if len(start) > most_tokens:
            return start[:most_tokens]
    return encode(text)[:most_tokens]


def cut_windows(ids: Array, context: int | None, what: str) -> Array:
    """A sequence of ids as samples of `context` tokens, one after the other; a shorter end is dropped.

    Returns
    -------
    Array, shape (samples, context)

    Raises
    ------
    InputError
        No context, or fewer tokens than one sample has.
    """
    if context is None:
        raise InputError(
            f"{what} is one sequence of {len(ids):,} tokens; say with --context how many make a sample"
        )
    if context < 2:
        raise InputError(f"the context is {context} tokens; a sample must have 2 or more")
    if len(ids) < context:
        raise InputError(
            f"{what} has {len(ids):,} tokens, and a sample has {context:,}; give more, or a smaller --context"
        )
    return ids[: len(ids) // context * context].reshape(-1, context)


def with_next_tokens(network: Network, data: Data) -> Data:
    """The data with the next token as the label of every token but the last, for a causal language model.

    A network is one when it has a distribution over the tokens at every place, which no later token changes:
    that is tried with one sample. Data that has labels, and data for any other network, is left as it is.

    Parameters
    ----------
    data : Data
        That fits the network, see `check_data`.
    """
    ids = data.inputs
    if data.labels is not None or ids.is_floating_point() or ids.ndim != 2 or ids.shape[1] < 2:
        return data
    sample = ids[:1].clone()
    with torch.inference_mode():
        output = _run(network, sample)
        if output.ndim != 3 or output.shape[1] != ids.shape[1] or output.shape[2] <= int(ids.max()):
            return data
        sample[0, -1] = (sample[0, -1] + 1) % output.shape[2]
        changed = _run(network, sample)
    if float((changed - output)[:, :-1].abs().max()) > _SAME * float(output.abs().max()):
        return data
    return replace(data, labels=ids[:, 1:].contiguous())


def _run(network: Network, ids: Tensor) -> Tensor:
    return network.run(ids.to(network.device)).float()
