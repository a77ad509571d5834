"""ResNet-20 of the assets folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.network import Network, capture

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))


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
