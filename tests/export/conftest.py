"""The real networks of the assets folder, and headers of packed files."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from apportion.network import Network, capture

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))


def with_checksum(text: str) -> dict[str, str]:
    """The metadata of a packed file whose header is this text."""
    return {"apportion": text, "apportion-crc32": str(zlib.crc32(text.encode()))}


def rewrite_file(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    """A safetensors file with its tensors and metadata changed."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


@pytest.fixture(scope="session")
def asset_models() -> Any:
    """The module that defines and loads the real networks."""
    if not (ASSETS / "models.py").exists():
        pytest.skip("there is no assets folder; set APPORTION_ASSETS to one that has models.py")
    definition = importlib.util.spec_from_file_location("apportion_test_assets", ASSETS / "models.py")
    assert definition is not None
    assert definition.loader is not None
    models = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(models)
    return models


@pytest.fixture(scope="session")
def resnet20(asset_models: Any) -> Network:
    """The captured ResNet-20."""
    return capture(asset_models.load("cifar10_resnet20"), torch.zeros(2, 3, 32, 32))
