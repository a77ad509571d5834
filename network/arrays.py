"""From arrays of whatever kind to tensors a network takes: pixels scaled, floats checked, ids as int64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["Array", "as_array", "to_inputs", "to_labels"]

Array: TypeAlias = np.ndarray[Any, Any]

_PIXEL_CHANNELS = (1, 3, 4)


def as_array(value: object, what: str) -> Array:
    """A numpy array from an array or tensor.

    Raises
    ------
    InputError
        Another type.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray):
        return value
    raise InputError(f"{what} is a {type(value).__name__}; it must be a tensor or a numpy array")


def to_inputs(
    array: Array,
    what: str,
    *,
    pixels: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Inputs for a network.

    uint8 with four axes, or with three where `pixels` says that they are grey images, is
    `(samples, height, width[, channels])` and becomes float32 `(samples, channels, height, width)` divided
    by 255; floats become float32; other integers are token ids and become int64. Then
    `(x - mean) / std` for anything but ids, along the first axis after the samples.

    Parameters
    ----------
    numbers : sequence of int, optional
        By which number each sample is known to who gave it; default: its place.

    Raises
    ------
    InputError
        Not real numbers, a sample of no axes, NaN or infinite values, channels that are no image's, mean or
        std that do not fit.
    """
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"{what} has type {array.dtype}; inputs must be uint8 pixels, floats or integer token ids"
        )
    if array.ndim < 2:
        raise InputError(f"{what} has shape {array.shape}; inputs must have two axes or more, samples first")
    if array.dtype == np.uint8 and (array.ndim == 4 or (pixels and array.ndim == 3)):
        array = _planes(array, what)
    elif pixels and array.dtype.kind != "f":
        raise InputError(
            f"{what} has type {array.dtype} and shape {array.shape}; images must be uint8 "
            "(samples, height, width[, channels]), or floats as the network takes them"
        )
    if array.dtype.kind != "f":
        if mean is not None or std is not None:
            raise InputError(f"{what} holds token ids; leave mean and std out")
        if array.size and int(array.min()) < 0:
            raise InputError(f"{what} holds the token id {int(array.min())}; ids start at 0")
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    finite = torch.isfinite(values)
    if not finite.all():
        places = (~finite).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        first = min(places if numbers is None else (numbers[place] for place in places))
        raise InputError(
            f"{what} has {int((~finite).sum()):,} values that are NaN or infinite, the first in "
            f"sample {first} (counted from 0); remove these samples"
        )
    shift, scale = _per_channel(mean, values, "mean", what), _per_channel(std, values, "std", what)
    if shift is not None:
        values = values - shift
    if scale is not None:
        if not (scale > 0).all():
            raise InputError(f"std is {', '.join(map(str, std or ()))}; every value must be positive")
        values = values / scale
    return values


def to_labels(array: Array, what: str) -> Tensor:
    """Labels as int64.

    Raises
    ------
    InputError
        Not integers, or negative.
    """
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} has labels of type {array.dtype}; they must be integers, the class numbers")
    if array.size and int(array.min()) < 0:
        raise InputError(f"{what} has the label {int(array.min())}; classes are numbered from 0")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _planes(images: Array, what: str) -> Array:
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] not in _PIXEL_CHANNELS:
        raise InputError(
            f"{what} has uint8 images of shape {images.shape}; the last axis must be 1, 3 or 4 channels: "
            "(samples, height, width, channels)"
        )
    return images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def _per_channel(given: Sequence[float] | None, values: Tensor, name: str, what: str) -> Tensor | None:
    if given is None:
        return None
    channels = values.shape[1]
    if len(given) not in (1, channels):
        raise InputError(
            f"{name} has {len(given)} values; {what} has {channels} channels: give {channels}, or 1 for all"
        )
    factors = torch.tensor(list(given), dtype=torch.float32)
    if not torch.isfinite(factors).all():
        raise InputError(f"{name} is {', '.join(map(str, given))}; every value must be finite")
    return factors.reshape(-1, *[1] * (values.ndim - 2))
