"""Directions of the output in which a change of the network is measured: factors of the Fisher information.

For logits z with p = softmax(z), the KL divergence to second order is 1/2 d' F d with
F = diag(p) - p p' in logits, so any cotangents u_r with E[sum_r u_r u_r'] = F give it without bias.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["Labels", "cotangents", "draw_directions"]

MOST_CLASSES = 64
POWER_STEPS = 6
DIRECTION_FLOATS = 2**22


class Labels(enum.StrEnum):
    """Which cotangents are drawn for a sample.

    ``sampled``: the gradient of ``log p_y`` for labels y drawn from p. ``projected``: the leading
    directions of F, all but the last draw, and one random projection of what they leave; its variance is
    that of the small remainder alone. ``all``: every class weighted by ``sqrt(p)``, exact.
    """

    SAMPLED = "sampled"
    PROJECTED = "projected"
    ALL = "all"


def cotangents(logits: Tensor, labels: Labels, draws: int, noise: Tensor | None) -> Tensor:
    """Cotangents of the logits whose outer products sum to the Fisher information, in expectation.

    Parameters
    ----------
    logits : Tensor, shape (samples, ..., classes)
        The dimensions between are positions (tokens), drawn independently.
    draws : int
        Directions per sample; ignored for ``all``.
    noise : Tensor, shape (samples, ..., `noise_count`)
        Uniform in [0, 1): a number per label for ``sampled``; for ``projected`` a sign per leading
        direction, of which there are ``min(draws - 1, classes)``, and one per class.

    Returns
    -------
    Tensor, shape (directions, samples, ..., classes)

    Raises
    ------
    InputError
        ``all`` for outputs with more than 64 classes or with several positions.
    """
    p = logits.detach().double().softmax(-1)
    classes = p.shape[-1]
    if labels is Labels.ALL:
        if p.ndim > 2 or classes > MOST_CLASSES:
            raise InputError(
                f"labels 'all' needs one backward pass per class; this network has {classes} classes at "
                f"{p[0, ..., 0].numel()} positions. Use labels 'projected', or at most {MOST_CLASSES} "
                "classes and one position"
            )
        every = torch.eye(classes, device=p.device, dtype=p.dtype)[:, None]
        directions = p.sqrt().T[:, :, None] * (every - p)
    elif noise is None:
        raise InputError(f"labels '{labels}' need noise")
    elif labels is Labels.SAMPLED:
        drawn = torch.searchsorted(p.cumsum(-1), noise.to(p.dtype)).clamp_(max=classes - 1)
        directions = torch.nn.functional.one_hot(drawn.movedim(-1, 0), classes).to(p.dtype) - p
        directions = directions / draws**0.5
    else:
        signs = torch.where(noise < 0.5, -1.0, 1.0).to(p.dtype)
        directions = _projected(p, signs[..., :-classes], signs[..., -classes:])
    return directions.to(logits.dtype)


def draw_directions(logits: Tensor, labels: Labels, draws: int, seed: int, samples: Sequence[int]) -> Tensor:
    """Cotangents of the output; each sample has a generator of its own, so that chunks change nothing.

    Parameters
    ----------
    logits, labels, draws
        As for `cotangents`.
    samples : sequence of int
        What each sample is called; with the seed it says what is drawn.

    Returns
    -------
    Tensor, shape (directions, samples, ..., classes)
    """
    classes = logits.shape[-1]
    count = noise_count(labels, draws, classes)
    if count == 0:
        return cotangents(logits, labels, draws, None)
    noise = torch.stack(
        [
            torch.rand(
                (*logits.shape[1:-1], count),
                generator=torch.Generator().manual_seed(seed * 1_000_003 + sample),
            )
            for sample in samples
        ]
    ).to(logits.device)
    # Positions are independent, and there are a dozen doubles for each class on the way.
    rows = max(1, DIRECTION_FLOATS // classes)
    pieces = zip(
        torch.split(logits.flatten(0, -2), rows), torch.split(noise.flatten(0, -2), rows), strict=True
    )
    found = [cotangents(piece, labels, draws, drawn) for piece, drawn in pieces]
    return torch.cat(found, 1).view(-1, *logits.shape)


def noise_count(labels: Labels, draws: int, classes: int) -> int:
    """Numbers of noise per position that `cotangents` needs."""
    # The information has no more directions than there are classes.
    leading = min(draws - 1, classes)
    return {Labels.SAMPLED: draws, Labels.PROJECTED: leading + classes, Labels.ALL: 0}[labels]


def _projected(p: Tensor, leading_signs: Tensor, class_signs: Tensor) -> Tensor:
    """Leading directions D and a random rest w with ``D D' + E[w w'] = F`` exactly.

    For any basis U, ``D = F U (U' F U)^(-1/2)`` is the part of F that U sees (Nystrom), and with
    ``x = sqrt(p) s - p <sqrt(p), s>``, whose covariance is F, the rest is ``w = x - F U (U' F U)^-1 U' x``.
    The signs keep positions independent.
    """
    count = leading_signs.shape[-1]
    weighted = p.sqrt() * class_signs
    rest = weighted - p * weighted.sum(-1, keepdim=True)
    if count == 0:
        return rest[None]
    basis = _leading_basis(p, count)
    seen = _apply_fisher(p, basis)
    values, vectors = torch.linalg.eigh(basis.transpose(-1, -2) @ seen)
    # A confident sample has fewer directions than were asked for: the others are left out.
    inverse = torch.where(
        values > 1e-9 * values[..., -1:].clamp_min(1e-30), values.clamp_min(1e-30).rsqrt(), 0.0
    )
    leading = seen @ (vectors * inverse[..., None, :])
    rest = (
        rest
        - (leading @ ((basis @ (vectors * inverse[..., None, :])).transpose(-1, -2) @ rest[..., None]))[
            ..., 0
        ]
    )
    directions = (leading * leading_signs[..., None, :]).movedim(-1, 0)
    return torch.cat([directions, rest[None]])


def _leading_basis(p: Tensor, count: int) -> Tensor:
    """Orthonormal columns near the leading eigenvectors of F, shape (..., classes, count)."""
    # F is close to diag(p) on the likeliest classes: start there, and let F act.
    order = p.topk(min(count + 1, p.shape[-1]), dim=-1).indices
    basis = torch.nn.functional.one_hot(order[..., :count], p.shape[-1]).to(p.dtype).transpose(-1, -2)
    for _ in range(POWER_STEPS):
        basis, _ = torch.linalg.qr(_apply_fisher(p, basis))
    return basis


def _apply_fisher(p: Tensor, basis: Tensor) -> Tensor:
    weighted = p[..., None] * basis
    return weighted - p[..., None] * weighted.sum(-2, keepdim=True)
