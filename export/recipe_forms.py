"""The documents of other toolkits that give every layer its bits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..quantizer import StepUnit

__all__ = ["Scheme", "autoround", "compressed_tensors", "modelopt", "nncf", "torchao"]


INTEGER_BYTES = 8
"""The width that has one step per channel in NNCF, and no settings."""


@dataclass(frozen=True)
class Scheme:
    """How a toolkit stores one layer: symmetric integers of one width.

    Parameters
    ----------
    layer : str
        Name of the module whose weight it is.
    bits : int, optional
        Width of the integers; None where the layer stays float.
    unit : StepUnit
        What shares a step.
    group : int
        Consecutive inputs that share a step, where `unit` is "group"; 0 otherwise.
    """

    layer: str
    bits: int | None
    unit: StepUnit = StepUnit.CHANNEL
    group: int = 0


def torchao(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """For ``quantize_(model, config_from_dict(document), filter_fn=None)`` of torchao."""
    entries: dict[str, Any] = {}
    for scheme in schemes:
        if scheme.bits is None:
            continue
        granularity = (
            {"_type": "PerGroup", "_version": 1, "_data": {"group_size": scheme.group}}
            if scheme.group
            else {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}
        )
        entries[scheme.layer] = {
            "_type": "IntxWeightOnlyConfig",
            "_version": 2,
            "_data": {
                "weight_dtype": {"_type": "torch.dtype", "_data": f"int{scheme.bits}"},
                "granularity": granularity,
                "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
            },
        }
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": entries}}


def compressed_tensors(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """For ``QuantizationConfig.model_validate(document)`` of compressed-tensors and llm-compressor."""
    groups: dict[tuple[int, StepUnit, int], list[str]] = {}
    for scheme in schemes:
        if scheme.bits is not None:
            groups.setdefault((scheme.bits, scheme.unit, scheme.group), []).append(scheme.layer)
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {
            f"group_{index}": {
                "targets": layers,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": unit.value,
                    "group_size": group or None,
                },
            }
            for index, ((bits, unit, group), layers) in enumerate(groups.items())
        },
        "ignore": [scheme.layer for scheme in schemes if scheme.bits is None],
    }


def autoround(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """For ``AutoRound(model, layer_config=document)`` of auto-round; 16 bits leave a layer as it is."""
    sizes = {StepUnit.TENSOR: 0, StepUnit.CHANNEL: -1}
    return {
        scheme.layer: {"bits": 16}
        if scheme.bits is None
        else {
            "bits": scheme.bits,
            "group_size": scheme.group or sizes[scheme.unit],
            "sym": True,
            "data_type": "int",
            "act_bits": 16,
        }
        for scheme in schemes
    }


def modelopt(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """For ``modelopt.torch.quantization.quantize(model, document)`` of NVIDIA ModelOpt."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for scheme in schemes:
        if scheme.bits is None:
            continue
        steps: dict[str, Any] = {"axis": None if scheme.unit is StepUnit.TENSOR else 0}
        if scheme.group:
            # Of the last axis, the inputs.
            steps = {"block_sizes": {-1: scheme.group}}
        entries.append(
            {"quantizer_name": f"{scheme.layer}.weight_quantizer", "cfg": {"num_bits": scheme.bits, **steps}}
        )
    return {"quant_cfg": entries, "algorithm": "max"}


def nncf(schemes: Sequence[Scheme]) -> dict[str, Any]:
    """For NNCF: arguments of ``nncf.compress_weights``, called once for each entry, one after the other.

    Each call compresses the layers of one width and leaves out all nodes but theirs.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for scheme in schemes:
        if scheme.bits is not None:
            groups.setdefault((scheme.bits, scheme.group), []).append(scheme.layer)
    calls = []
    for (bits, group), layers in groups.items():
        # A layer is the node of its operation, such as `blocks/0/fc/linear/0`, and its constants.
        nodes = "|".join(re.escape(layer.replace(".", "/")) for layer in layers)
        constants = "|".join(map(re.escape, layers))
        others = rf"^(?!(?:{nodes})/[^/]+/\d+$|(?:{constants})\.[^.]+$).*$"
        call: dict[str, Any] = {"mode": f"int{bits}_sym", "ignored_scope": {"patterns": [others]}}
        if bits != INTEGER_BYTES:
            call |= {"group_size": group or -1, "ratio": 1.0, "all_layers": True}
        calls.append(call)
    return {"compress_weights": calls}
