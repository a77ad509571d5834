"""Cuts of a weight into strips: the rows of all strips are the weight, each weight once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import LayerCut, fitting_cut
from apportion.errors import InputError


@settings(derandomize=True, deadline=None)
@given(channels=st.integers(1, 7), strips=st.integers(2, 6), inputs=st.integers(2, 9))
def test_row_r_of_strip_s_holds_the_inputs_of_the_strip_that_meet_output_channel_r(
    channels: int, strips: int, inputs: int
) -> None:
    weight = np.arange(channels * strips * inputs).reshape(channels, -1)
    cut = LayerCut.of(weight.shape, f"inputs:{inputs}")
    assert (cut.strips, cut.rows_per_strip, cut.row_weights) == (strips, channels, inputs)
    rows = cut.to_rows(weight)
    assert rows.shape == (cut.rows, cut.row_weights)
    for strip in range(strips):
        part = weight[:, strip * inputs : (strip + 1) * inputs]
        assert np.array_equal(rows[cut.strip_rows([strip])], part)
    assert np.array_equal(cut.from_rows(rows), weight)
    assert torch.equal(cut.to_rows(torch.from_numpy(weight)), torch.from_numpy(rows))


def test_without_a_cut_strips_are_output_channels_and_rows_are_the_weight() -> None:
    weight = np.arange(36).reshape(4, 9)
    cut = LayerCut.of((4, 1, 3, 3))
    assert (cut.strips, cut.rows_per_strip, cut.row_weights, cut.rows) == (4, 1, 9, 4)
    assert cut.strip_rows([0, 3]) == [0, 3]
    assert cut.to_rows(weight) is weight
    assert cut.from_rows(weight) is weight


@pytest.mark.parametrize("shape", [(4, 24), (4, 8), (4, 20), (4, 6), (4, 8, 1, 2), (16, 1, 8)])
def test_a_cut_fits_linear_layers_of_two_or_more_whole_strips(shape: tuple[int, ...]) -> None:
    if shape == (4, 24):
        assert fitting_cut(shape, "inputs:8") == "inputs:8"
        return
    assert fitting_cut(shape, "inputs:8") is None
    with pytest.raises(InputError, match=r"the cut inputs:8 does not fit shape \[.*\]: only linear layers"):
        LayerCut.of(shape, "inputs:8")


@pytest.mark.parametrize("cut", ["channel", "tile:4"])
def test_other_units_are_no_cuts(cut: str) -> None:
    with pytest.raises(InputError, match=rf"'{cut}' is not a cut; .* such as inputs:64"):
        fitting_cut((4, 24), cut)
