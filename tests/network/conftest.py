"""Small networks that between them use every kind of layer, and the real ones of the assets folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Network, capture

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))


class Mixed(nn.Module):
    """Convolutions of all sorts, batch norm, a residual block, a linear layer used twice, in-place relu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8, dilation=2)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (2, 1), padding="same", groups=2)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        branch = self.relu(self.depthwise_norm(self.depthwise(x)))
        branch = self.grouped(branch)
        branch += x
        x = self.relu(branch).mean((2, 3))
        return self.head(self.mix(torch.tanh(self.mix(x))))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, with batch norms whose statistics and gains are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((part.weight, 0.5), (part.bias, -0.5), (part.running_mean, -0.5)):
                if tensor is not None:
                    tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Threads that wait for each other are slow where the processors are shared.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", name="lively")
def lively_fixture() -> Callable[[nn.Module], nn.Module]:
    return lively


@pytest.fixture(scope="session")
def mixed() -> nn.Module:
    """A module of 2,000 weights, in evaluation mode."""
    torch.manual_seed(0)
    return lively(Mixed())


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Eight small images, `(8, 3, 9, 9)`."""
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def mixed_network(mixed: nn.Module, images: Tensor) -> Network:
    """The captured `mixed`; shared, because capturing takes a second."""
    return capture(mixed, images)


@pytest.fixture(scope="session")
def asset_models() -> Any:
    """The module of the assets folder that builds and loads its networks."""
    path = ASSETS / "models.py"
    if not path.exists():
        pytest.skip("no models.py in the assets folder; set APPORTION_ASSETS to a folder that has it")
    definition = importlib.util.spec_from_file_location("apportion_test_assets", path)
    assert definition is not None
    assert definition.loader is not None
    module = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(module)
    return module
