"""Laws of rows written as sums of low-bit rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.quantizer import Points, Rounding, StepSearch, fit_greedy, fit_joint, fit_point

# Least number of weights from which the laws about total error hold; shorter rows are in results/points.md.
LONG_WEIGHTS = 64
WITHIN_EIGHT_BITS = [(2, 2), (2, 3), (2, 4), (3, 2), (4, 2)]


@st.composite
def short_or_long_rows(draw: st.DrawFn) -> Tensor:
    """Rows of a few shapes and tails, with zero rows, repeated weights and outliers among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    rows = torch.randn(4, draw(st.sampled_from([1, 2, 9, 27, 80])), generator=generator)
    rows = rows * rows.abs() ** draw(st.sampled_from([0.0, 1.0, 3.0]))
    if draw(st.booleans()):
        rows[1] = 0
    if draw(st.booleans()):
        rows[2] = rows[2].round()
    if draw(st.booleans()):
        rows[3, 0] = draw(st.sampled_from([-1e4, 1e4]))
    return rows


def total_error(rows: list[Tensor], bits: int, points: int, fit: str) -> float:
    """Squared error over all rows of a joint fit, a greedy fit, or one point of as many bits."""
    fits = {
        "joint": lambda part: fit_joint(part, bits, points),
        "greedy": lambda part: fit_greedy(part, bits, points),
        "one": lambda part: fit_point(part, bits * points),
    }
    return sum(float(fits[fit](part).error(part).sum()) for part in rows)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(short_or_long_rows(), st.integers(1, 4), st.integers(0, 20))
def test_the_error_of_a_row_never_grows_with_another_joint_point(rows: Tensor, bits: int, power: int) -> None:
    rows = rows * 2.0**power
    errors = [fit_joint(rows, bits, points).error(rows) for points in range(1, 5)]
    for fewer, more in itertools.pairwise(errors):
        assert bool((more <= fewer).all())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    short_or_long_rows(),
    st.integers(1, 8),
    st.sampled_from(list(StepSearch)),
    st.sampled_from(list(Rounding)),
)
def test_the_error_of_a_row_never_grows_with_another_greedy_point(
    rows: Tensor, bits: int, search: StepSearch, rounding: Rounding
) -> None:
    errors = [
        fit_greedy(rows, bits, points, search=search, p=3.0, rounding=rounding).error(rows)
        for points in range(1, 7)
    ]
    for fewer, more in itertools.pairwise(errors):
        assert bool((more <= fewer).all())


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    short_or_long_rows(),
    st.sampled_from([*WITHIN_EIGHT_BITS, (3, 3), (8, 2), (8, 8), (2, 8), (1, 1), (1, 3), (1, 8)]),
)
def test_codes_of_joint_points_are_in_range_and_steps_have_eleven_bits(
    rows: Tensor, shape: tuple[int, int]
) -> None:
    bits, points = shape
    fitted = fit_joint(rows, bits, points)
    assert fitted.codes.shape == (points, *rows.shape)
    assert fitted.steps.shape == (points, rows.shape[0])
    assert fitted.codes.dtype == torch.int8
    if bits == 1:
        assert set(fitted.codes.flatten().tolist()) <= {-1, 1}
    else:
        assert int(fitted.codes.min()) >= -(2 ** (bits - 1))
        assert int(fitted.codes.max()) < 2 ** (bits - 1)
    significand = torch.frexp(fitted.steps).mantissa * 2**11
    assert torch.equal(significand, significand.round())


@pytest.mark.parametrize("source", ["gaussian_rows", "laplace_rows", "resnet_rows", "mobilenet_rows"])
@pytest.mark.parametrize(("bits", "points"), WITHIN_EIGHT_BITS)
def test_joint_points_match_one_point_of_as_many_bits_and_beat_greedy_ones(
    bits: int, points: int, source: str, request: pytest.FixtureRequest
) -> None:
    given_rows = request.getfixturevalue(source)
    rows = [given_rows] if isinstance(given_rows, Tensor) else given_rows
    # Each row counts alike, whatever the size of its weights, so that no layer drowns the others.
    rows = [part / part.norm(dim=1, keepdim=True).clamp_min(1e-12) for part in rows]
    rows = [part for part in rows if part.shape[1] >= LONG_WEIGHTS]
    joint = total_error(rows, bits, points, "joint")
    assert joint <= (1.15 if bits == 2 else 1.06) * total_error(rows, bits, points, "one")
    assert joint <= 0.4 * total_error(rows, bits, points, "greedy")


@pytest.mark.parametrize("source", ["gaussian_rows", "laplace_rows", "resnet_rows"])
@pytest.mark.parametrize("points", [2, 3, 4])
def test_binary_points_lose_less_than_one_point_of_as_many_bits(
    points: int, source: str, request: pytest.FixtureRequest
) -> None:
    given_rows = request.getfixturevalue(source)
    rows = [given_rows] if isinstance(given_rows, Tensor) else given_rows
    rows = [part / part.norm(dim=1, keepdim=True).clamp_min(1e-12) for part in rows]
    rows = [part for part in rows if part.shape[1] >= LONG_WEIGHTS]
    assert total_error(rows, 1, points, "joint") <= 0.9 * total_error(rows, 1, points, "one")


def test_joint_codes_are_the_nearest_of_all_sums(gaussian_rows: Tensor) -> None:
    rows = gaussian_rows[:4, :100]
    fitted = fit_joint(rows, 2, 3)
    for row, steps, value in zip(rows, fitted.steps.T, fitted.values(), strict=True):
        sums = torch.tensor(
            [
                sum(float(step) * code for step, code in zip(steps, codes, strict=True))
                for codes in itertools.product(range(-2, 2), repeat=3)
            ]
        )
        nearest = (row[:, None] - sums).abs().min(1).values
        # Sums in another order differ in the last bits of a number of size 1 to 4.
        torch.testing.assert_close((row - value).abs(), nearest, rtol=0, atol=1e-6)


def test_joint_steps_are_least_squares_for_their_codes(gaussian_rows: Tensor) -> None:
    rows = gaussian_rows[:8]
    fitted = fit_joint(rows, 3, 2)
    for row, codes, error in zip(rows, fitted.codes.unbind(1), fitted.error(rows), strict=True):
        basis = codes.T.double()
        steps = torch.linalg.lstsq(basis, row.double()[:, None]).solution
        least = (basis @ steps - row.double()[:, None]).square().sum()
        # Short of the optimum by the rounding of steps to 11 bits and the 1e-4 at which a row stops.
        assert float(error) <= float(least) * 1.002


def test_a_row_that_points_can_write_exactly_is_written_exactly() -> None:
    row = torch.cartesian_prod(torch.arange(-2.0, 2.0), torch.arange(-2.0, 2.0) * 4).sum(1)[None] * 0.375
    assert float(fit_joint(row, 2, 2).error(row).sum()) == 0


def test_zero_rows_have_zero_codes_and_no_error() -> None:
    rows = torch.zeros(3, 10)
    for fitted in (fit_joint(rows, 2, 3), fit_greedy(rows, 4, 2), fit_point(rows, 8)):
        assert int(fitted.codes.count_nonzero()) == 0
        assert float(fitted.values().abs().max()) == 0


@settings(derandomize=True, deadline=None, max_examples=30)
@given(short_or_long_rows(), st.sampled_from([(4, 1), (2, 2), (4, 2), (3, 3)]), st.integers(-60, 60))
def test_a_power_of_two_scales_the_steps_and_leaves_the_codes(
    rows: Tensor, shape: tuple[int, int], power: int
) -> None:
    for fit in (fit_joint, fit_greedy):
        plain, scaled = fit(rows, *shape), fit(rows * 2.0**power, *shape)
        assert torch.equal(scaled.codes, plain.codes)
        # A zero row has no scale of its own.
        steps = torch.where(rows.any(1), plain.steps * 2.0**power, plain.steps)
        live = plain.codes.any(2)
        assert torch.equal(scaled.steps[live], steps[live])


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from([(4, 1), (2, 2), (4, 2)]), st.floats(0.1, 1000))
def test_any_positive_factor_scales_the_error_with_its_square(
    seed: int, shape: tuple[int, int], factor: float
) -> None:
    rows = torch.randn(8, 128, generator=torch.Generator().manual_seed(seed))
    plain = float(fit_joint(rows, *shape).error(rows).sum())
    scaled = float(fit_joint(rows * factor, *shape).error(rows * factor).sum()) / factor**2
    # Rounded steps and products move single codes; the fit of a row may end in a neighbouring optimum.
    assert scaled == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(("bits", "points"), WITHIN_EIGHT_BITS)
def test_joint_points_fit_negated_rows_equally_well(bits: int, points: int, laplace_rows: Tensor) -> None:
    # Steps have signs, so that two's complement's longer side can lie on either; one point has not.
    plain = float(fit_joint(laplace_rows, bits, points).error(laplace_rows).sum())
    mirrored = float(fit_joint(-laplace_rows, bits, points).error(-laplace_rows).sum())
    assert mirrored == pytest.approx(plain, rel=0.02)


def test_values_are_the_sum_over_points_of_step_times_code() -> None:
    codes = torch.tensor([[[1, -2]], [[3, 0]]], dtype=torch.int8)
    points = Points(codes, torch.tensor([[0.5], [-0.25]]))
    assert points.values().tolist() == [[-0.25, -1.0]]
    assert points.error(torch.tensor([[0.0, -1.0]])).tolist() == [0.0625]
