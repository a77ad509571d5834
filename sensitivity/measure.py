"""Measure a profile, or find out that the one at hand still fits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..network import Data, Layer, Network, fingerprint
from ..quantizer import Option, Quantizer
from .activation_grids import ActivationSettings, check_sites, site_options
from .activation_profile import activation_profile
from .candidates import OptionWeights, cut_of, layer_options
from .exact import ExactScores, score_exact
from .feasible import ledger_of
from .fisher import FisherScores, FisherSettings, score_fisher
from .profile import After, Fingerprint, LayerProfile, OptionScore, Profile, ProfileArrays
from .unused import FLOOR_ERROR, find_floors
from .value_scores import score_values

__all__ = [
    "check_cut",
    "check_profile",
    "make_profile",
    "measure_profile",
    "profile_fingerprint",
    "tool_versions",
]

Method = Literal["fisher", "exact"]


def profile_fingerprint(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    method: Method,
    settings: FisherSettings,
    after: After = "nearest",
    activations: ActivationSettings | None = None,
) -> Fingerprint:
    """What scores measured from these belong to; the memory bound changes no score and is left out."""
    chosen: dict[str, Any] = {
        "options": [str(option) for option in options],
        "quantizer": quantizer.settings(),
        "after": after,
    }
    chosen |= {"method": method, "excluded": sorted(network.excluded)}
    if method == "fisher":
        chosen |= {"labels": settings.labels, "draws": settings.draws, "seed": settings.seed}
        chosen |= {"share": settings.share, "cut": settings.cut, "factor_rows": settings.factor_rows}
    if activations is not None:
        chosen |= {"activations": [str(option) for option in activations.options]}
        chosen |= {"ranges": activations.settings()}
    return Fingerprint(
        weights=fingerprint(network),
        data=fingerprint(data),
        settings=hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest(),
    )


def check_profile(profile: Profile, wanted: Fingerprint, where: str) -> None:
    """Refuse a profile of another network, other data or other settings.

    Raises
    ------
    InputError
        Says which of the three differs.
    """
    differing = [
        what
        for what, found, given in (
            ("the network (its weights or its program)", profile.fingerprint.weights, wanted.weights),
            ("the calibration data", profile.fingerprint.data, wanted.data),
            ("the options or settings", profile.fingerprint.settings, wanted.settings),
        )
        if found != given
    ]
    if differing:
        raise InputError(
            f"the profile {where} was measured with other inputs: {' and '.join(differing)} differ (it is of "
            f"{profile.samples:,} samples of {profile.data}). Give the inputs it was measured with, another "
            "--out, or --force to measure again"
        )


def measure_profile(
    network: Network,
    data: Data,
    options: Sequence[Option],
    *,
    quantizer: Quantizer | None = None,
    method: Method = "fisher",
    settings: FisherSettings | None = None,
    after: After = "nearest",
    weights: OptionWeights | None = None,
    activations: ActivationSettings | None = None,
    store: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Profile, ProfileArrays | None]:
    """Score every option of every layer, and of every value that layers read where these have options too.

    Parameters
    ----------
    options : sequence of Option
        In the order in which they shall stand, by `parse_options`.
    method : "fisher" or "exact"
        See `score_fisher` and `score_exact`.
    after : "nearest", "gptq", "adaquant" or "brecq"
        What makes the `weights`, for the profile.
    weights : callable, optional
        Weights of the options, such as those that GPTQ makes of them; default: rounded to nearest.
    activations : ActivationSettings, optional
        How values may be stored; default: they stay float.
    store : Path, optional
        Folder for partial sums of the Fisher scores, from which an interrupted run goes on; those of
        activations are measured last, and in one piece.

    Returns
    -------
    Profile
        The document.
    ProfileArrays or None
        Channel scores and projections, for Fisher scores.

    Raises
    ------
    InputError
        A score is NaN or infinite; names layer or value, and option.
    """
    quantizer = quantizer or Quantizer()
    settings = settings or FisherSettings()
    print_ = profile_fingerprint(network, data, options, quantizer, method, settings, after, activations)
    check_cut(network, method, settings.cut)
    if activations is not None:
        check_sites(network, activations)
    began = time.perf_counter()
    scores: ExactScores | FisherScores
    if method == "exact":
        scores = score_exact(network, data, options, quantizer, weights=weights, on_progress=on_progress)
    else:
        scores = score_fisher(
            network, data, options, quantizer, settings,
            weights=weights, store=store, key=print_.text(), on_progress=on_progress,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    profile, arrays = make_profile(
        network, data, options, quantizer, settings, scores, print_, seconds, after
    )
    if activations is None:
        return profile, arrays
    began = time.perf_counter()
    sites = site_options(network, data, activations, seed=settings.seed)
    sites, found = score_values(network, data, sites, method, settings, on_progress=on_progress)
    seconds = round(time.perf_counter() - began, 3)
    document = activation_profile(network, sites, found, activations, method)
    update = {"activations": document, "seconds": profile.seconds | {"activations": seconds}}
    return profile.model_copy(update=update), arrays


def make_profile(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    settings: FisherSettings,
    scores: ExactScores | FisherScores,
    print_: Fingerprint,
    seconds: float,
    after: After = "nearest",
) -> tuple[Profile, ProfileArrays | None]:
    """The document of scores, and its arrays.

    Raises
    ------
    InputError
        A score is NaN or infinite; names layer and option.
    """
    method: Method = "exact"
    arrays: ProfileArrays | None = None
    unused: dict[str, int] = {}
    if isinstance(scores, FisherScores):
        floors = find_floors(network, data, options, quantizer, scores.channel_loss, settings.cut)
        unused = floors.unused
        strips = [cut_of(layer, settings.cut).strips for layer in network.layers]
        per_layer = torch.stack([part.sum(0) for part in torch.split(floors.loss, strips)])
        method, loss = "fisher", scores.layer_loss() + per_layer
        error = (scores.layer_error().square() + (FLOOR_ERROR * per_layer).square()).sqrt()
        arrays = ProfileArrays(
            channel_loss=scores.channel_loss + floors.loss,
            channel_error=scores.channel_error + FLOOR_ERROR * floors.loss,
            projections=scores.projections,
            factors=None if scores.factors is None else scores.factors.to(torch.bfloat16),
        )
    else:
        loss, error = scores.loss, scores.error
    scored, draws = arrays.projections.shape[:2] if arrays is not None else (0, 0)
    _refuse_nonfinite(network, options, loss)
    blocks = {layer.name: number for number, block in enumerate(network.blocks) for layer in block.layers}
    profile = Profile(
        method=method,
        after=after,
        labels=str(settings.labels) if method == "fisher" else None,
        draws=draws,
        data=data.name,
        samples=len(data.inputs),
        scored_samples=scored,
        factor_rows=0 if arrays is None or arrays.factors is None else len(arrays.factors),
        seed=settings.seed,
        quantizer=quantizer.settings(),
        options=tuple(str(option) for option in options),
        fingerprint=print_,
        **ledger_of(network)._asdict(),
        skipped=dict(network.skipped),
        excluded=network.excluded,
        excluded_macs={layer.name: layer.macs for layer in network.left_out},
        unused=unused,
        seconds={"scores": round(seconds, 3)},
        versions=tool_versions(),
        layers=tuple(
            _layer_profile(
                layer,
                blocks.get(layer.name),
                network.reads(layer),
                options,
                loss[row],
                error[row],
                settings.cut,
            )
            for row, layer in enumerate(network.layers)
        ),
    )
    return profile, arrays


def tool_versions() -> dict[str, str]:
    """Versions that documents carry."""
    return {name: version(name) for name in ("apportion", "torch", "numpy")}


def check_cut(network: Network, method: Method, cut: str | None) -> None:
    """Refuse a cut that nothing would be scored by."""
    if cut is None:
        return
    if method == "exact":
        raise InputError(
            f"exact scores exist per layer only, and cannot be measured per {cut}; use Fisher scores"
        )
    if not any(cut_of(layer, cut).inputs for layer in network.layers):
        widths = sorted({layer.fan_in for layer in network.layers if layer.kind != "conv"})
        has = f"have {', '.join(map(str, widths))} inputs" if widths else "are none"
        raise InputError(
            f"no layer can be cut per {cut}: linear layers must have 2 or more times that number of inputs, "
            f"and here they {has}; choose another number, or --unit channel"
        )


def _layer_profile(
    layer: Layer,
    block: int | None,
    reads: tuple[str, ...],
    options: Sequence[Option],
    loss: Tensor,
    error: Tensor,
    cut: str | None,
) -> LayerProfile:
    shape = (layer.channels, layer.fan_in) if layer.transposed else layer.shape
    strips = cut_of(layer, cut)
    return LayerProfile(
        name=layer.name,
        kind=layer.kind,
        shape=shape,
        fan_in=layer.fan_in,
        cut=cut if strips.inputs else None,
        macs=layer.macs,
        block=block,
        reads=reads,
        scores=tuple(
            OptionScore(
                option=str(options[index]),
                size_bits=options[index].size_bits(strips.rows, strips.row_weights),
                loss=float(loss[index]),
                standard_error=float(error[index]),
            )
            for index in layer_options(layer, options, cut)
        ),
    )


def _refuse_nonfinite(network: Network, options: Sequence[Option], loss: Tensor) -> None:
    wrong = (~torch.isfinite(loss)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"layer '{network.layers[row].name}': score is {float(loss[row, column])} for option "
            f"{options[column]}; check that the calibration data is scaled as in training, and that the "
            "layer's weights are finite and not extremely large"
        )
