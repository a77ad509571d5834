"""The 1,797 digits the embedded network was trained and is judged on, kept as small integers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

__all__ = ["DATA_FILE", "PIXEL_LEVELS", "Digits", "digits_data"]

DATA_FILE = "digits.npz"
PIXEL_LEVELS = 16
"""Stored pixels are integers 0..16 (set points in a 4 x 4 field); the network reads them divided by this."""


@dataclass(frozen=True)
class Digits:
    """Images with their labels.

    Attributes
    ----------
    name : what a report calls this set.
    inputs : (N, 1, 8, 8) float32 in 0..1.
    labels : (N,) int64 in 0..9.
    """

    name: str
    inputs: Tensor
    labels: Tensor


def digits_data() -> tuple[Digits, Digits]:
    """The calibration and the held-out digits, which have no image in common.

    The 512 calibration digits are part of the 1,297 the network was trained on; the 500 held-out digits, 50
    of each class, were used neither for training nor for choosing how to train, and are for judging only.
    """
    stored = files(__package__).joinpath(DATA_FILE).read_bytes()
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
        parts = {part: arrays[part] for part in ("calibration", "heldout")}

    def select(name: str, part: str) -> Digits:
        chosen = images[parts[part]].astype(np.float32) / PIXEL_LEVELS
        return Digits(
            name=name,
            inputs=torch.from_numpy(chosen).unsqueeze(1),
            labels=torch.from_numpy(labels[parts[part]].astype(np.int64)),
        )

    return select("digits, training part", "calibration"), select("digits, held-out part", "heldout")
