"""The embedded default: what is shipped is small, honest and what the network was trained for."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import nn

from apportion.demo import Digits, DigitsNetwork, digits_data, digits_network
from apportion.demo.data import DATA_FILE
from apportion.demo.network import WEIGHTS_FILE

PACKAGE = files("apportion.demo")


@pytest.fixture(scope="module")
def calibration() -> Digits:
    return digits_data()[0]


@pytest.fixture(scope="module")
def heldout() -> Digits:
    return digits_data()[1]


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    return float((network(digits.inputs).argmax(dim=1) == digits.labels).double().mean())


def test_the_network_reads_at_least_98_percent_of_the_heldout_digits(heldout: Digits) -> None:
    assert accuracy(digits_network(), heldout) >= 0.98


def test_an_untrained_network_of_the_same_form_does_not(heldout: Digits) -> None:
    torch.manual_seed(0)
    assert accuracy(DigitsNetwork().eval(), heldout) < 0.5


def test_inputs_are_sixteenths_between_zero_and_one_in_the_shape_the_network_takes(
    calibration: Digits, heldout: Digits
) -> None:
    for digits, samples in ((calibration, 512), (heldout, 500)):
        assert digits.inputs.shape == (samples, 1, 8, 8)
        assert digits.inputs.dtype == torch.float32
        assert digits.inputs.min() == 0
        assert digits.inputs.max() == 1
        assert torch.equal(digits.inputs * 16, (digits.inputs * 16).round())


def test_labels_name_every_class_and_the_heldout_classes_are_balanced(
    calibration: Digits, heldout: Digits
) -> None:
    assert calibration.labels.dtype == heldout.labels.dtype == torch.int64
    assert set(calibration.labels.tolist()) == set(range(10))
    assert torch.bincount(heldout.labels).tolist() == [50] * 10


def test_no_image_is_both_for_calibration_and_held_out(calibration: Digits, heldout: Digits) -> None:
    def distinct(digits: Digits) -> set[bytes]:
        return {image.numpy().tobytes() for image in digits.inputs}

    assert len(distinct(calibration)) == len(calibration.inputs)
    assert len(distinct(heldout)) == len(heldout.inputs)
    assert not distinct(calibration) & distinct(heldout)


def test_two_calls_give_equal_data_and_equal_logits(heldout: Digits) -> None:
    assert torch.equal(digits_data()[1].inputs, heldout.inputs)
    assert torch.equal(digits_data()[1].labels, heldout.labels)
    with torch.no_grad():
        assert torch.equal(digits_network()(heldout.inputs), digits_network()(heldout.inputs))


def test_changing_one_network_leaves_the_next_one_as_trained() -> None:
    changed = digits_network()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert all(bool(parameter.abs().sum() > 0) for parameter in digits_network().parameters())


def test_logits_of_an_image_do_not_depend_on_its_batch(heldout: Digits) -> None:
    network = digits_network()
    assert not network.training
    with torch.no_grad():
        together = network(heldout.inputs[:16])
        alone = torch.cat([network(image.unsqueeze(0)) for image in heldout.inputs[:16]])
    # Not bitwise: a convolution may add in another order for another batch size.
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_layers_are_of_every_kind_and_of_very_different_size() -> None:
    layers = [module for module in digits_network().modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    sizes = [layer.weight.numel() for layer in layers]
    assert len(layers) == 9
    assert any(layer.groups == layer.in_channels > 1 for layer in convolutions)
    assert any(layer.kernel_size == (1, 1) for layer in convolutions)
    assert any(layer.stride == (2, 2) for layer in convolutions)
    assert max(sizes) > 100 * min(sizes)


def test_package_data_stays_small_and_names_its_licence() -> None:
    size_bytes = sum(len(PACKAGE.joinpath(name).read_bytes()) for name in (DATA_FILE, WEIGHTS_FILE))
    assert size_bytes < 300_000
    assert "CC BY 4.0" in PACKAGE.joinpath("SOURCE.md").read_text(encoding="utf-8")


def test_stored_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn (the demo extra) is not installed"
    )
    original = datasets.load_digits()
    with PACKAGE.joinpath(DATA_FILE).open("rb") as file, np.load(file) as stored:
        np.testing.assert_array_equal(stored["images"], original.images)
        np.testing.assert_array_equal(stored["labels"], original.target)
