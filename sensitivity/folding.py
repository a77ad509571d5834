"""Projections of all strips in few rows: a sketch that keeps their Gram matrix in expectation.

Every pair of sample and draw gives a row of projections. Where there are more than are wanted, rows are added
up with random signs, so that products between strips keep their mean (Charikar, Chen and Farach-Colton,
"Finding frequent items in data streams", ICALP 2002). Samples of even and of odd number never share a row:
the two halves stay independent, and one can judge what was chosen on the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fold", "row_count"]


def row_count(samples: int, draws: int, limit: int) -> int:
    """Rows that `samples` samples need: one for each draw, at most `limit`, even."""
    return min(2 * -(-samples // 2) * draws, 2 * (limit // 2))


def fold(effects: Sequence[Tensor], first: int, rows: int, seed: int) -> Tensor:
    """Add the projections of consecutive samples to their rows.

    Parameters
    ----------
    effects : sequence of Tensor, each of shape (strips, samples, draws, options)
        One per layer.
    first : int
        Position of the first sample among those that are scored.
    rows : int
        `row_count`: the first half of the rows belongs to samples at even positions.
    seed : int
        Of the signs; a sample's signs depend on the seed and its position alone.

    Returns
    -------
    Tensor, shape (rows, strips of all layers, options), float32
    """
    _, samples, draws, options = effects[0].shape
    position = torch.arange(first, first + samples)
    place = (position // 2)[:, None] * draws + torch.arange(draws)
    row = (position % 2)[:, None] * (rows // 2) + place % (rows // 2)
    signs = torch.stack([_signs(draws, seed, sample) for sample in position.tolist()])
    parts = []
    for effect in effects:
        flat = (effect * signs.to(effect.device)[:, :, None]).permute(1, 2, 0, 3).flatten(0, 1)
        folded = flat.new_zeros(rows, effect.shape[0], options)
        parts.append(folded.index_add_(0, row.flatten().to(flat.device), flat).cpu())
    return torch.cat(parts, 1)


def _signs(draws: int, seed: int, sample: int) -> Tensor:
    """Random signs of a sample's rows, independent of what its directions are drawn from.

    Generators of neighbouring seeds may begin alike, and that of a direction has signs of its own: with the
    same numbers the two would cancel, and products between samples would not average out.
    """
    digest = hashlib.sha256(f"fold {seed} {sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.where(torch.rand(draws, generator=generator) < 0.5, -1.0, 1.0)
