"""A network with what rows of a benchmark share: its scores, the images that judge, plans made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from networks import MOBILENET, RESNET, VIT, Subject

from apportion.allocator import Complexity, DropKind, LayerPlan, Plan, assignment_digest
from apportion.network import Data, Network, float_logits
from apportion.quantizer import Quantizer, parse_option, parse_options, stored_bits
from apportion.reconstruct import Finalized, GptqOptions, layer_shapes, measure_finalized
from apportion.sensitivity import Profile, ProfileArrays, measure_profile

__all__ = [
    "DEVICES",
    "ENDS",
    "JUDGED_ON",
    "OPTIONS",
    "SAMPLES",
    "Bench",
    "device_name",
    "plan_by_hand",
    "uniform_plan",
]

OPTIONS = "w2..8"
ENDS = "w8"
"""The option of the first and the last layer of a uniform plan."""
SAMPLES = {RESNET: 1024, MOBILENET: 128, VIT: 128}
JUDGED_ON = 1000
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Bench:
    """A network with its scores, which are measured when a row first needs them, and its judge."""

    subject: Subject

    @property
    def network(self) -> Network:
        """The captured network."""
        return self.subject.network

    @cached_property
    def judge(self) -> Data:
        """The images that judge, which neither scores nor reconstruction see."""
        held_out = self.subject.held_out
        assert held_out.labels is not None
        return Data(held_out.inputs[:JUDGED_ON], held_out.labels[:JUDGED_ON], held_out.name)

    @cached_property
    def reference(self) -> torch.Tensor:
        """The float network's output there."""
        return float_logits(self.network, self.judge)

    @cached_property
    def nearest_scores(self) -> tuple[Profile, ProfileArrays | None]:
        """Scores of weights rounded to nearest."""
        return measure_profile(self.network, self.subject.calibration, parse_options(OPTIONS))

    @cached_property
    def gptq_scores(self) -> tuple[Profile, ProfileArrays | None]:
        """Scores of what GPTQ makes of every option."""
        weights = GptqOptions(self.network, self.subject.calibration, Quantizer(), unseen=True)
        return measure_profile(
            self.network, self.subject.calibration, parse_options(OPTIONS), after="gptq", weights=weights
        )

    def quality(self, finalized: Finalized) -> dict[str, Any]:
        """Loss, top-1 and its paired drop of finalized weights on the images that judge."""
        found = measure_finalized(self.network, finalized, self.judge, self.reference, drop=DropKind.ACCURACY)
        assert found.drop is not None
        return {
            "kl": found.loss,
            "standard_error": found.standard_error,
            "accuracy": found.accuracy,
            "float_accuracy": found.float_accuracy,
            "drop": [found.drop.value, found.drop.low, found.drop.high],
        }


def device_name(device: str) -> str:
    """What a page calls a device: a GPU by the name its maker gave it, and the PyTorch that ran there."""
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}" if device == "cuda" else device


def uniform_plan(network: Network, option: str, ends: str = ENDS) -> Plan:
    """One option for all layers but the first and the last, which have 8 bits or what is said."""
    names = list(layer_shapes(network))
    return plan_by_hand(network, {name: ends if name in (names[0], names[-1]) else option for name in names})


def plan_by_hand(network: Network, chosen: Mapping[str, str]) -> Plan:
    """A plan per layer from the option of every layer by name."""
    shapes, layers = layer_shapes(network), []
    for layer in network.layers:
        text = chosen[layer.name]
        size_bits = stored_bits([parse_option(text)] * layer.channels, layer.fan_in, 2)
        layers.append(
            LayerPlan(
                name=layer.name,
                shape=shapes[layer.name],
                option=text,
                size_bits=size_bits,
                predicted_loss=0.0,
                mean_bits=size_bits / (layer.channels * layer.fan_in),
            )
        )
    weights = sum(layer.size_bits for layer in layers)
    count = sum(layer.channels * layer.fan_in for layer in network.layers)
    fixed_bits = network.float_bits - 32 * count
    return Plan(
        unit="layer",
        budgets=("100%",),
        complexity=Complexity(
            size_bits=weights + fixed_bits,
            average_bits=weights / count,
            fixed_bits=fixed_bits,
            float_bits=network.float_bits,
            weight_count=count,
        ),
        predicted_loss=0.0,
        profile="none: chosen by hand",
        options=tuple(dict.fromkeys(chosen.values())),
        quantizer=Quantizer().settings(),
        assignment=assignment_digest(layers),
        versions={},
        layers=tuple(layers),
    )
