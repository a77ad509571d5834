"""Fingerprints: equal for equal content however it is held, different for any difference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apportion.network import Data, fingerprint

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4)}


def test_order_strides_and_devices_do_not_matter() -> None:
    turned = {name: WEIGHTS[name] for name in reversed(WEIGHTS)}
    turned["a"] = WEIGHTS["a"].t().contiguous().t()
    assert fingerprint(turned) == fingerprint(WEIGHTS)
    assert len(fingerprint(WEIGHTS)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).reshape(3, 2)},
        {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3)},
        {"a": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))},
        {"a": torch.arange(6).reshape(2, 3)},
        {"d": torch.zeros(1)},
        {"c": torch.zeros(4, 0)},
        {"b": torch.tensor([3])},
    ],
)
def test_any_change_of_names_types_shapes_or_values_shows(change: dict[str, Tensor]) -> None:
    assert fingerprint({**WEIGHTS, **change}) != fingerprint(WEIGHTS)


def test_the_sign_of_zero_and_half_precision_count() -> None:
    assert fingerprint({"a": torch.tensor([0.0])}) != fingerprint({"a": torch.tensor([-0.0])})
    half = {"a": torch.ones(2, dtype=torch.bfloat16)}
    assert fingerprint(half) != fingerprint({"a": torch.ones(2, dtype=torch.float16)})


def test_data_is_its_inputs_and_labels_whatever_it_is_called() -> None:
    inputs, labels = torch.rand(3, 2), torch.tensor([0, 1, 2])
    assert fingerprint(Data(inputs, labels, "one")) == fingerprint(Data(inputs, labels, "two"))
    assert fingerprint(Data(inputs, None, "one")) != fingerprint(Data(inputs, labels, "one"))
    assert fingerprint(Data(inputs, labels, "one")) != fingerprint(Data(inputs, labels.flip(0), "one"))
