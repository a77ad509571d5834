"""Fisher against exact scores on a trained network; the full comparison is a benchmark."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from apportion.network import Data, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherSettings, score_exact, score_fisher

ASSETS = Path(os.environ.get("APPORTION_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
OPTIONS = parse_options("w3..6,w2x2,w8")


@pytest.fixture(scope="module")
def resnet20() -> tuple[Network, Data]:
    for name in ("models.py", "cifar10_resnet20.safetensors", "cifar10_lossless.npz"):
        if not (ASSETS / name).exists():
            pytest.skip(f"{name} is not in the assets folder; set APPORTION_ASSETS to a folder that has it")
    definition = importlib.util.spec_from_file_location("apportion_test_assets", ASSETS / "models.py")
    assert definition is not None
    assert definition.loader is not None
    models: Any = importlib.util.module_from_spec(definition)
    definition.loader.exec_module(models)
    with np.load(ASSETS / "cifar10_lossless.npz") as arrays:
        images = arrays["train_images"][:128]
    inputs = torch.as_tensor(models.preprocess("cifar10_resnet20", images))
    return capture(models.load("cifar10_resnet20"), inputs), Data(inputs, None, "128 training images")


def test_fisher_scores_rank_options_and_layers_like_exact_ones(resnet20: tuple[Network, Data]) -> None:
    network, data = resnet20
    quantizer = Quantizer()
    exact = score_exact(network, data, OPTIONS, quantizer).loss
    fisher = score_fisher(network, data, OPTIONS, quantizer, FisherSettings()).layer_loss()
    assert fisher.shape == (20, len(OPTIONS))
    assert spearmanr(fisher.flatten(), exact.flatten()).statistic >= 0.98
    ratio = float((fisher / exact).log().mean().exp())
    assert abs(ratio - 1) <= 0.15
