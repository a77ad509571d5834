"""Calibration and evaluation data: arrays, images or a Python loader, checked before anything is computed."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError
from .arrays import Array, as_array, to_inputs, to_labels
from .images import read_images
from .network import Network
from .order import spread_order
from .reason import message_of
from .source import parse_source
from .tokens import cut_windows, read_text

__all__ = ["Data", "check_data", "load_data"]

_ARRAYS = re.compile(r"(?P<path>.+\.(npz|safetensors))(:(?P<part>\w+))?")
# What numpy, zipfile and safetensors raise on files that are damaged, or not theirs.
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    SafetensorError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class _Raw:
    """Arrays as read; `pixels` says that they were called images, `limited` that no more were read."""

    inputs: Array
    labels: Array | None
    pixels: bool
    limited: bool = False


@dataclass(frozen=True)
class Data:
    """Inputs for a network.

    Where samples are held out, from what is learned or moved by, they are the last or the first ones: give
    samples in an order in which any part is like the whole, as `load_data` does with a limit.

    Attributes
    ----------
    inputs : Tensor
        `(samples, channels, height, width)` or other floats, float32 unless the network takes another type,
        see `taken_by`; or token ids as int64 `(samples, tokens)`.
    labels : Tensor or None
        int64, `(samples,)`, or `(samples, tokens)` for a class per token, or `(samples, tokens - 1)` where
        the last one has none.
    name : str
        Where it came from, for documents and messages.
    numbers : sequence of int, optional
        By which number each sample is known to who gave it; default: its place.
    """

    inputs: Tensor
    labels: Tensor | None
    name: str
    numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, which: slice) -> Data:
        """Some of the samples, which are not copied."""
        labels = None if self.labels is None else self.labels[which]
        numbers = None if self.numbers is None else self.numbers[which]
        return replace(self, inputs=self.inputs[which], labels=labels, numbers=numbers)

    def taken_by(self, network: Network) -> Data:
        """The same with floats of the type that a network takes, such as float16; ids stay.

        Raises
        ------
        InputError
            A value is beyond the range of that type.
        """
        wanted = network.inputs[0].dtype
        if not self.inputs.is_floating_point() or not wanted.is_floating_point:
            return self
        inputs = self.inputs.to(wanted)
        if torch.isfinite(self.inputs).all() and not torch.isfinite(inputs).all():
            kind, most = str(wanted).removeprefix("torch."), torch.finfo(wanted).max
            raise InputError(
                f"{self.name} has values up to {float(self.inputs.abs().max()):g}; the network takes {kind}, "
                f"which ends at {most:g}: scale them as in training"
            )
        return replace(self, inputs=inputs)


def load_data(
    spec: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
    tokenizer: Path | None = None,
    context: int | None = None,
) -> Data:
    """Load data.

    Parameters
    ----------
    spec : str
        - `file.npz` or `file.safetensors` with an array `images` or `inputs`, and perhaps `labels`;
          `file.npz:train` takes `train_images` or `train_inputs`, and `train_labels`.
        - A folder or `.zip` of images of one size; their labels are the positions of their folders in
          sorted order where there are at least two folders, else there are none.
        - A `.txt` file, UTF-8, of which a tokenizer makes samples of `context` tokens, one after the other.
        - `file.py:loader` or `module:loader`: a function returning inputs, or (inputs, labels).
    mean, std : sequence of float, optional
        Applied as `(x - mean) / std` after pixels were divided by 255: one per channel, or one for all.
    limit : int, optional
        At most this many samples, spread over all that there are, and in an order in which any part of them
        is: data tends to be sorted by class. A smaller limit gives the first of those of a larger one. Of
        texts the first ones, in order. None: all, as they come.
    tokenizer : Path, optional
        For texts: a `tokenizer.json`, a SentencePiece `.model`, or the folder of a model that has one.
    context : int, optional
        Tokens of a sample, for texts and for arrays that are one sequence of ids.

    Returns
    -------
    Data
        uint8 images `(samples, height, width[, channels])` become float32 `(samples, channels, height,
        width)` divided by 255; other integers become token ids; other floats become float32, and
        `Data.taken_by` gives them the type that a network takes.

    Raises
    ------
    InputError
        Missing, unreadable, truncated or pickled files; empty, non-numeric or non-finite arrays; labels of
        another length; mean and std that do not fit.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of samples is {limit}; it must be at least 1")
    match = _ARRAYS.fullmatch(spec)
    if match is not None:
        raw = _read_arrays(Path(match["path"]), match["part"])
    elif spec.endswith(".txt"):
        most = None if limit is None or context is None else limit * context
        raw = _Raw(read_text(Path(spec), tokenizer, most), None, pixels=False, limited=True)
    elif Path(spec).is_dir() or spec.endswith(".zip"):
        raw = _Raw(*read_images(Path(spec), limit), pixels=True, limited=True)
    elif ":" in spec:
        raw = _call_loader(spec)
    else:
        raise InputError(
            f"'{spec}' is not data: there is no such folder, and it is not a .npz, .safetensors, .zip or "
            ".txt file nor a loader 'file.py:function'"
        )
    if raw.inputs.ndim == 0 or raw.inputs.size == 0:
        raise InputError(f"{spec} holds no samples: its inputs have shape {raw.inputs.shape}")
    raw = _in_windows(raw, context, spec)
    if raw.labels is not None and raw.labels.shape[:1] != raw.inputs.shape[:1]:
        raise InputError(
            f"{spec} has labels of shape {raw.labels.shape} for inputs of shape {raw.inputs.shape}; "
            "give one label for each input"
        )
    order = None
    if limit is not None and not raw.limited:
        order = spread_order(len(raw.inputs))[:limit]
        labels = None if raw.labels is None else raw.labels[order]
        raw = replace(raw, inputs=raw.inputs[order], labels=labels)
    return Data(
        inputs=to_inputs(raw.inputs[:limit], spec, pixels=raw.pixels, mean=mean, std=std, numbers=order),
        labels=None if raw.labels is None else to_labels(raw.labels[:limit], spec),
        name=spec,
        numbers=order,
    )


def check_data(network: Network, data: Data) -> None:
    """Run one sample, so that data which does not fit is refused before the work begins.

    Raises
    ------
    InputError
        The inputs have another shape or type than the network was captured with, the network fails on
        them, its output is not finite or is of one class, or labels are not classes of its output.
    """
    if len(network.inputs) != 1:
        raise InputError(
            f"the network takes {len(network.inputs)} inputs; data with one input cannot feed it"
        )
    expected, given = network.inputs[0], data.inputs
    if tuple(given.shape[1:]) != expected.shape or given.dtype != expected.dtype:
        raise InputError(
            f"{data.name}: a sample is {_describe(tuple(given.shape[1:]), given.dtype)}; "
            f"the network takes {_describe(expected.shape, expected.dtype)}"
        )
    # Of token ids the greatest is tried: on an accelerator an id outside the table ends the process.
    sample = 0 if given.is_floating_point() else int(given.flatten(1).amax(dim=1).argmax())
    number = sample if data.numbers is None else data.numbers[sample]
    try:
        with torch.inference_mode():
            output = network.run(given[sample : sample + 1].to(network.device))
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(f"{data.name}: the network fails on sample {number}: {message_of(error)}") from error
    if not torch.isfinite(output).all():
        raise InputError(f"{data.name}: the network's output for sample {number} is NaN or infinite")
    if output.shape[-1] < 2:
        raise InputError(
            f"{data.name}: the network's output for a sample has shape {tuple(output.shape[1:])}, which is "
            "one class; what quantizing costs is the change of the probabilities of classes, and that of one "
            "class is always 1. Give a network that returns (samples, ..., classes), two classes or more"
        )
    if data.labels is None:
        return
    positions, classes = tuple(output.shape[1:-1]), output.shape[-1]
    # The last token of a sample has no next one.
    if tuple(data.labels.shape[1:]) not in (positions, tuple(place - 1 for place in positions)):
        raise InputError(
            f"{data.name}: labels have shape {tuple(data.labels.shape)}; for this network they must be "
            f"{(len(data), *positions)}"
        )
    if int(data.labels.max()) >= classes:
        raise InputError(
            f"{data.name}: the greatest label is {int(data.labels.max())}; the network has {classes} "
            "classes, numbered from 0"
        )


def _in_windows(raw: _Raw, context: int | None, spec: str) -> _Raw:
    """A sequence of ids as samples; ids that are samples already as they are."""
    ids = raw.inputs.dtype.kind in "iu" and not raw.pixels
    if ids and raw.inputs.ndim == 1 and raw.labels is None:
        return replace(raw, inputs=cut_windows(raw.inputs, context, spec))
    return raw


def _describe(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{shape} {str(dtype).removeprefix('torch.')}"


def _read_arrays(path: Path, part: str | None) -> _Raw:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return _select(load_file(path), part, path)
        # numpy leaves a damaged file open when it opens it itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _select(arrays, part, path)
    except InputError:
        raise
    except _UNREADABLE as error:
        pickled = "pickle" in str(error).lower()
        reason = "it holds pickled objects, which are never loaded" if pickled else message_of(error)
        raise InputError(
            f"cannot read {path}: {reason}; write arrays of numbers with numpy.savez or safetensors"
        ) from error


def _select(arrays: Mapping[str, Array | Tensor], part: str | None, path: Path) -> _Raw:
    """The inputs and labels among named arrays; a part is a prefix of both names, or an array's own name."""
    prefix = "" if part is None else f"{part}_"
    wanted = [f"{prefix}images", f"{prefix}inputs", *([part] if part else [])]
    names = list(arrays)
    name = next((candidate for candidate in wanted if candidate in names), None)
    if name is None:
        raise InputError(
            f"{path} has no array {' or '.join(repr(candidate) for candidate in wanted)}; it has "
            f"{', '.join(names) or 'none'}; 'file.npz:train' takes train_images and train_labels"
        )
    labels = f"{prefix}labels"
    return _Raw(
        as_array(arrays[name], name),
        as_array(arrays[labels], labels) if labels in names else None,
        name.endswith("images"),
    )


def _call_loader(spec: str) -> _Raw:
    with parse_source(spec, "data").call() as result:
        pair = result if isinstance(result, (tuple, list)) else (result, None)
        if len(pair) != 2:
            raise InputError(f"{spec} returned {len(pair)} things; return inputs, or (inputs, labels)")
        inputs, labels = pair
        return _Raw(
            as_array(inputs, f"what {spec} returned as inputs"),
            None if labels is None else as_array(labels, f"what {spec} returned as labels"),
            False,
        )
