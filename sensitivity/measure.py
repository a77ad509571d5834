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
from .candidates import layer_options
from .exact import score_exact
from .feasible import ledger_of
from .fisher import FisherSettings, score_fisher
from .profile import Fingerprint, LayerProfile, OptionScore, Profile, ProfileArrays

__all__ = ["check_profile", "measure_profile", "profile_fingerprint", "tool_versions"]

Method = Literal["fisher", "exact"]


def profile_fingerprint(
    network: Network,
    data: Data,
    options: Sequence[Option],
    quantizer: Quantizer,
    method: Method,
    settings: FisherSettings,
) -> Fingerprint:
    """What scores measured from these belong to; the memory bound changes no score and is left out."""
    chosen: dict[str, Any] = {
        "options": [str(option) for option in options],
        "quantizer": quantizer.settings(),
    }
    chosen["method"] = method
    if method == "fisher":
        chosen |= {"labels": settings.labels, "draws": settings.draws, "seed": settings.seed}
        chosen["share"] = settings.share
    return Fingerprint(
        weights=fingerprint(network.tensors),
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
            ("the network's weights", profile.fingerprint.weights, wanted.weights),
            ("the calibration data", profile.fingerprint.data, wanted.data),
            ("the options or settings", profile.fingerprint.settings, wanted.settings),
        )
        if found != given
    ]
    if differing:
        raise InputError(
            f"the profile {where} was measured with other inputs: {' and '.join(differing)} differ. Give the "
            "inputs it was measured with, another --out, or --force to measure again"
        )


def measure_profile(
    network: Network,
    data: Data,
    options: Sequence[Option],
    *,
    quantizer: Quantizer | None = None,
    method: Method = "fisher",
    settings: FisherSettings | None = None,
    store: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Profile, ProfileArrays | None]:
    """Score every option of every layer.

    Parameters
    ----------
    options : sequence of Option
        In the order in which they shall stand, by `parse_options`.
    method : "fisher" or "exact"
        See `score_fisher` and `score_exact`.
    store : Path, optional
        Folder for partial sums of the Fisher scores, from which an interrupted run goes on.

    Returns
    -------
    Profile
        The document.
    ProfileArrays or None
        Channel scores and projections, for Fisher scores.

    Raises
    ------
    InputError
        A score is NaN or infinite; names layer and option.
    """
    quantizer = quantizer or Quantizer()
    settings = settings or FisherSettings()
    print_ = profile_fingerprint(network, data, options, quantizer, method, settings)
    began = time.perf_counter()
    arrays: ProfileArrays | None = None
    if method == "exact":
        exact = score_exact(network, data, options, quantizer, on_progress=on_progress)
        loss, error, draws, scored = exact.loss, exact.error, 0, 0
    else:
        fisher = score_fisher(
            network, data, options, quantizer, settings,
            store=store, key=print_.text(), on_progress=on_progress,
        )  # fmt: skip
        loss, error = fisher.layer_loss(), fisher.layer_error()
        scored, draws = fisher.projections.shape[:2]
        arrays = ProfileArrays(
            channel_loss=fisher.channel_loss,
            channel_error=fisher.channel_error,
            projections=fisher.projections,
        )
    seconds = time.perf_counter() - began
    _refuse_nonfinite(network, options, loss)
    profile = Profile(
        method=method,
        labels=str(settings.labels) if method == "fisher" else None,
        draws=draws,
        data=data.name,
        samples=len(data.inputs),
        scored_samples=scored,
        seed=settings.seed,
        quantizer=quantizer.settings(),
        options=tuple(str(option) for option in options),
        fingerprint=print_,
        **ledger_of(network)._asdict(),
        skipped=dict(network.skipped),
        seconds={"scores": round(seconds, 3)},
        versions=tool_versions(),
        layers=tuple(
            _layer_profile(layer, options, loss[row], error[row]) for row, layer in enumerate(network.layers)
        ),
    )
    return profile, arrays


def tool_versions() -> dict[str, str]:
    """Versions that documents carry."""
    return {name: version(name) for name in ("apportion", "torch", "numpy")}


def _layer_profile(layer: Layer, options: Sequence[Option], loss: Tensor, error: Tensor) -> LayerProfile:
    shape = (layer.channels, layer.fan_in) if layer.transposed else layer.shape
    return LayerProfile(
        name=layer.name,
        kind=layer.kind,
        shape=shape,
        fan_in=layer.fan_in,
        macs=layer.macs,
        scores=tuple(
            OptionScore(
                option=str(options[index]),
                size_bits=options[index].size_bits(layer.channels, layer.fan_in),
                loss=float(loss[index]),
                standard_error=float(error[index]),
            )
            for index in layer_options(layer, options)
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
