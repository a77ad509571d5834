"""The digits network with plans made by hand, and ResNet-20 of the assets folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.allocator import LayerPlan, Plan
from apportion.demo import digits_data, digits_network
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.reconstruct import accept_edits
from apportion.sensitivity import Profile, ProfileArrays, measure_profile, solve_plan

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
Assign = Callable[[Mapping[str, Sequence[str]]], Plan]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Data:
    """The first 64 calibration digits, with labels."""
    digits = digits_data()[0]
    return Data(digits.inputs[:64], digits.labels[:64], digits.name)


@pytest.fixture(scope="session")
def network(data: Data) -> Network:
    return capture(digits_network(), data.inputs)


@pytest.fixture(scope="session")
def profile(network: Network, data: Data) -> tuple[Profile, ProfileArrays]:
    """Scores of options of every kind; groups of 16 fit all layers but two."""
    few = Data(data.inputs[:16], None, data.name)
    measured, arrays = measure_profile(network, few, parse_options("w2..4,w8,w2x2,w4t,w3g16"))
    assert arrays is not None
    return measured, arrays


@pytest.fixture(scope="session")
def plan(profile: tuple[Profile, ProfileArrays]) -> Plan:
    """The solved plan per layer at 4 bits."""
    return solve_plan(*profile, "4b", "layer")


@pytest.fixture(scope="session")
def assign(plan: Plan) -> Assign:
    """The plan with these options of channels in place of the solved ones, sizes counted again."""

    def assigned(options: Mapping[str, Sequence[str]]) -> Plan:
        layers = tuple(
            LayerPlan.from_channels(
                layer.name,
                layer.shape,
                options.get(layer.name, layer.channel_options()),
                size_bits=layer.size_bits,
                predicted_loss=layer.predicted_loss,
                mean_bits=layer.mean_bits,
            )
            for layer in plan.layers
        )
        return accept_edits(plan.model_copy(update={"layers": layers, "budget": "40b", "unit": "channel"}))

    return assigned


@pytest.fixture(scope="session")
def resnet20() -> Network:
    """The captured ResNet-20."""
    for name in ("models.py", "cifar10_resnet20.safetensors"):
        if not (ASSETS / name).exists():
            pytest.skip(f"{name} is not in the assets folder; set APPORTION_ASSETS to a folder that has it")
    definition = importlib.util.spec_from_file_location("apportion_test_assets", ASSETS / "models.py")
    assert definition is not None
    assert definition.loader is not None
    models: Any = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(models)
    return capture(models.load("cifar10_resnet20"), torch.zeros(2, 3, 32, 32))
