"""Grids: the nearest value and the neighbours of a stored one, against all values that the codes can make."""

from __future__ import annotations

import pytest
import torch

from apportion.quantizer import Quantizer, code_combinations, parse_option
from apportion.reconstruct import StoredLayer, StoredPart
from apportion.reconstruct.grids import COINCIDING, LayerGrid

OPTIONS = (
    "w1",
    "w1x2t",
    "w1x3",
    "w1x2g5",
    "w1x8",
    "w3",
    "w2t",
    "w4g5",
    "w2x2",
    "w2x3t",
    "w3x2g5",
    "w2x4",
    "w4x2g5",
)
ROWS, WEIGHTS = 6, 13


def stored_as(option: str) -> StoredLayer:
    rows = torch.randn(ROWS, WEIGHTS, generator=torch.Generator().manual_seed(0))
    return StoredLayer(
        "layer", (StoredPart(torch.arange(ROWS), Quantizer().quantize(rows, parse_option(option))),)
    )


def all_values(layer: StoredLayer) -> torch.Tensor:
    """Every value that each weight can take, ascending, shape (rows, weights, values)."""
    rows = layer.parts[0].rows
    codes = code_combinations(rows.option.bits, rows.option.points, rows.steps.device)
    groups = torch.arange(WEIGHTS) // (rows.option.group or WEIGHTS)
    steps = rows.steps.expand(-1, ROWS, -1)[:, :, groups]
    return torch.einsum("sp,prw->rws", codes, steps).sort(2).values


@pytest.fixture
def elsewhere() -> torch.Tensor:
    """Weights that are not those the steps were made for, some of them beyond all codes."""
    return 1.5 * torch.randn(ROWS, WEIGHTS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_nearest_is_that_of_all_values(option: str, elsewhere: torch.Tensor) -> None:
    layer = stored_as(option)
    grid = LayerGrid(layer)
    found = grid.stored(grid.nearest(elsewhere)).parts[0].rows.dequantize()
    least = (all_values(layer) - elsewhere[:, :, None]).abs().amin(2)
    torch.testing.assert_close((found - elsewhere).abs(), least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_column_after_column_is_all_at_once(option: str, elsewhere: torch.Tensor) -> None:
    grid = LayerGrid(stored_as(option))
    codes = grid.start()
    orders = torch.stack(
        [torch.randperm(WEIGHTS, generator=torch.Generator().manual_seed(row)) for row in range(ROWS)]
    )
    for columns in orders.T:
        grid.round_into(codes, elsewhere.gather(1, columns[:, None])[:, 0], columns)
    assert torch.equal(codes[0], grid.nearest(elsewhere)[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_a_bracket_is_the_stored_value_and_the_next_on_the_weights_side(
    option: str, elsewhere: torch.Tensor
) -> None:
    layer = stored_as(option)
    stored = layer.parts[0].rows.dequantize()
    bracket = LayerGrid(layer).bracket(elsewhere, sums=True)
    low, high = bracket.low, bracket.low + bracket.gap
    torch.testing.assert_close(torch.where(bracket.is_upper, high, low), stored, rtol=1e-5, atol=1e-6)
    other = torch.where(bracket.is_upper, low, high)
    side = torch.where(elsewhere < stored, -1.0, 1.0)
    ahead = side[:, :, None] * (all_values(layer) - stored[:, :, None])
    # Values this close count as the same.
    steps = layer.parts[0].rows.steps[-1].abs().amax()
    farther = ahead.where(ahead > COINCIDING * steps, torch.inf).amin(2)
    at_end = farther.isinf()
    distance = side * (other - stored)
    assert bool((distance[~at_end] > 0).all())
    assert bool((distance <= farther + 1e-5).all())
    assert bool((distance[at_end] < 0).all())
    if option in {"w3", "w2x2"}:
        assert bool(at_end.any())
        assert not bool(at_end.all())
