"""Rows of real networks for the quantizer's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
ROWS_PER_LAYER = 8


def _convolution_rows(name: str) -> list[Tensor]:
    """The first output channels of every convolution of a network, one tensor per layer."""
    path = ASSETS / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the assets folder; set APPORTION_ASSETS to a folder that has it")
    weights = load_file(path)
    return [weight.flatten(1)[:ROWS_PER_LAYER] for weight in weights.values() if weight.dim() == 4]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of operations on small tensors: on a busy machine a second thread costs ten times as much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def resnet_rows() -> list[Tensor]:
    """Rows of the convolutions of ResNet-20, 27 to 576 weights long."""
    return _convolution_rows("cifar10_resnet20")


@pytest.fixture(scope="session")
def mobilenet_rows() -> list[Tensor]:
    """Rows of the convolutions of MobileNetV1, 9 (depthwise) to 768 weights long."""
    return _convolution_rows("mobilenetv1_075_in1k")


@pytest.fixture(scope="session")
def gaussian_rows() -> Tensor:
    """Normal weights, shape (64, 576)."""
    return torch.randn(64, 576, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def laplace_rows() -> Tensor:
    """Double-exponential weights, shape (64, 576): heavier tails than the normal ones."""
    uniform = torch.rand(64, 576, generator=torch.Generator().manual_seed(1)) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())
