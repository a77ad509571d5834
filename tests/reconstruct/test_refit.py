"""Steps refitted to codes: the least-squares solution of every row, whatever its points, groups and width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.reconstruct.refit import refitted

from .conftest import row_errors, stored

MIX = ("w1", "w1x3", "w2", "w2x2g5", "w3g4", "w3x2", "w4x3")
CHANNELS, FAN_IN = 8, 14


def drawn(seed: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, another one that the steps are to fit, and Gram matrices of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(CHANNELS, FAN_IN, generator=generator)
    target = weight + 0.3 * torch.randn(CHANNELS, FAN_IN, generator=generator)
    inputs = torch.randn(groups, 3 * FAN_IN, FAN_IN, generator=generator)
    inputs = inputs @ torch.randn(groups, FAN_IN, FAN_IN, generator=generator)
    gram = inputs.mT @ inputs
    gram += 0.01 * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(FAN_IN)
    return weight, target.view(groups, -1, FAN_IN), gram


def least_error(codes: Tensor, group: int, target: Tensor, gram: Tensor) -> float:
    """``min_s || R (w - sum_k s_k c_k) ||^2`` with H = R'R, by a dense least-squares solver, of one row."""
    columns = []
    for point in codes.double():
        for begin in range(0, FAN_IN, group):
            column = torch.zeros(FAN_IN, dtype=torch.float64)
            column[begin : begin + group] = point[begin : begin + group]
            columns.append(column)
    root = torch.linalg.cholesky(gram.double()).mT
    basis, aim = root @ torch.stack(columns, 1), root @ target.double()
    # Columns may be nothing, or one another's copies.
    solution = torch.linalg.lstsq(basis, aim[:, None], driver="gelsd").solution
    return float((basis @ solution - aim[:, None]).square().sum())


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.integers(0, 2**16),
    st.sampled_from([1, 2, 4]),
    st.lists(st.sampled_from(MIX), min_size=CHANNELS, max_size=CHANNELS),
)
def test_steps_are_least_squares_for_the_codes_of_every_row(
    seed: int, groups: int, options: list[str]
) -> None:
    weight, target, gram = drawn(seed, groups)
    layer = stored(weight, options)
    found = refitted(layer, target, gram)
    reached = row_errors(found, target.view(-1, FAN_IN), gram.double())
    for part, new in zip(layer.parts, found.parts, strict=True):
        assert torch.equal(part.rows.codes, new.rows.codes)
        for place, row in enumerate(part.index.tolist()):
            own = gram[row // (CHANNELS // groups)]
            group = part.rows.option.group or FAN_IN
            least = least_error(part.rows.codes[:, place], group, target.view(-1, FAN_IN)[row], own)
            size = float(target.view(-1, FAN_IN)[row] @ own @ target.view(-1, FAN_IN)[row])
            # Steps have 11 significant bits, and a ridge of a millionth.
            assert float(reached[row]) <= least * 1.01 + 2e-5 * size


@pytest.mark.parametrize(
    ("option", "inputs", "most"), [("w3t", 0, 256), ("w2x2", 7, 256), ("w2x2g5", 0, 5), ("w1x3", 0, 2)]
)
def test_rows_that_share_steps_are_cut_or_have_many_take_one_factor(
    option: str, inputs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apportion.reconstruct.refit.MOST_STEPS", most)
    weight, target, gram = drawn(3)
    layer = stored(weight, [option] * (FAN_IN // inputs if inputs else CHANNELS), inputs)
    found = refitted(layer, target, gram)
    (old,), (new,) = layer.parts, found.parts
    ratios = new.rows.steps / old.rows.steps
    if option == "w3t":
        assert ratios.numel() == 1
    # Rows of a strip are its channels in order.
    points, rows, groups = ratios.shape
    by_channel = ratios.view(points, -1, min(rows, CHANNELS), groups)
    torch.testing.assert_close(by_channel, by_channel[:1, :1, :, :1].expand_as(by_channel), rtol=2e-3, atol=0)
    before, after = (row_errors(each, target.view(-1, FAN_IN), gram.double()) for each in (layer, found))
    assert float(after.sum()) < float(before.sum())


def test_codes_that_are_all_zero_keep_finite_steps() -> None:
    weight, target, gram = drawn(5)
    weight[2] = 0
    found = refitted(stored(weight, ["w2x2"] * CHANNELS), target, gram)
    assert bool(found.dequantize().isfinite().all())
    assert float(found.dequantize()[2].abs().max()) == 0
