"""Scores of two sets of samples, merged, are the scores of the union."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.errors import InputError
from apportion.network import Data, Network
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherScores, FisherSettings, Labels, merge_scores, score_fisher

OPTIONS = parse_options("w2..4")
ALL = FisherSettings(labels=Labels.ALL, share=1.0, factor_rows=512)


def scores_of(network: Network, data: Data, part: slice, settings: FisherSettings = ALL) -> FisherScores:
    return score_fisher(network, Data(data.inputs[part], None, data.name), OPTIONS, Quantizer(), settings)


def gram(rows: Tensor) -> Tensor:
    flat = rows.flatten(1).double()
    return flat.T @ flat


@pytest.mark.parametrize("cut", [1, 5, 6])
def test_merged_scores_are_those_of_the_union(image_network: Network, image_data: Data, cut: int) -> None:
    whole = scores_of(image_network, image_data, slice(None))
    first = scores_of(image_network, image_data, slice(0, cut))
    merged = merge_scores(first, scores_of(image_network, image_data, slice(cut, None)))
    assert merged.samples == len(image_data)
    # Float32 sums in another order; a standard error is a small difference of large sums.
    torch.testing.assert_close(merged.projections, whole.projections, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(merged.channel_loss, whole.channel_loss, rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(merged.channel_error, whole.channel_error, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(merged.layer_loss(), whole.layer_loss(), rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(merged.layer_error(), whole.layer_error(), rtol=1e-3, atol=1e-9)
    assert merged.factors is not None
    assert whole.factors is not None
    # Samples of even number stay in one half, those of odd number in the other.
    for half, expected in zip(merged.factors.chunk(2), whole.factors.chunk(2), strict=True):
        torch.testing.assert_close(gram(half), gram(expected), rtol=1e-4, atol=1e-6)


def test_drawn_scores_merge_to_the_scores_of_the_union_within_their_errors(
    image_network: Network, image_data: Data
) -> None:
    many = Data(image_data.inputs.repeat_interleave(40, 0), None, image_data.name)
    drawn = FisherSettings(share=0.9)
    first = scores_of(image_network, many, slice(0, 240), drawn)
    merged = merge_scores(first, scores_of(image_network, many, slice(240, None), drawn))
    exact = scores_of(image_network, image_data, slice(None))
    difference = (merged.layer_loss() - exact.layer_loss()).abs()
    assert bool((difference <= 4 * merged.layer_error()).all())


def made_up(samples: int, rows: int, seed: int) -> FisherScores:
    generator = torch.Generator().manual_seed(seed)
    return FisherScores(
        samples,
        torch.randn(samples, 2, 3, 2, generator=generator),
        torch.rand(5, 2, generator=generator).double(),
        torch.rand(5, 2, generator=generator).double(),
        torch.randn(rows, 5, 2, generator=generator),
    )


@settings(derandomize=True, deadline=None, max_examples=30)
@given(counts=st.tuples(*[st.integers(2, 40)] * 3), seed=st.integers(0, 100))
def test_the_order_of_merging_does_not_matter(counts: tuple[int, int, int], seed: int) -> None:
    a, b, c = (made_up(count, 4, seed + place) for place, count in enumerate(counts))
    left = merge_scores(merge_scores(a, b), c)
    right = merge_scores(a, merge_scores(b, c))
    assert left.samples == right.samples == sum(counts)
    torch.testing.assert_close(left.channel_loss, right.channel_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(left.channel_error, right.channel_error, rtol=1e-9, atol=0)


def test_rows_beyond_the_limit_are_added_to_others_and_keep_products_in_the_mean() -> None:
    first, second = made_up(6, 12, 0), made_up(7, 12, 1)
    assert first.factors is not None
    assert second.factors is not None
    expected = gram(first.factors) + gram(second.factors)
    # The signs depend on the number of samples, so other numbers draw other signs.
    merged = []
    for extra in range(300):
        longer = FisherScores(
            7 + extra, second.projections, second.channel_loss, second.channel_error, second.factors
        )
        found = merge_scores(first, longer, factor_rows=16).factors
        assert found is not None
        assert len(found) == 16
        merged.append(gram(found))
    error = torch.stack(merged).std(0) / 300**0.5
    # None of 100 products strays by five standard errors unless the mean is off.
    assert bool(((torch.stack(merged).mean(0) - expected).abs() <= 5 * error + 1e-4).all())
    assert float(error.max()) > 0


def test_scores_of_other_options_or_without_factors_are_refused(
    image_network: Network, image_data: Data
) -> None:
    scores = scores_of(image_network, image_data, slice(0, 4))
    fewer = score_fisher(image_network, image_data, OPTIONS[:2], Quantizer(), ALL)
    with pytest.raises(InputError, match="cannot be merged; measure both with the same network"):
        merge_scores(scores, fewer)
    plain = FisherScores(scores.samples, scores.projections, scores.channel_loss, scores.channel_error)
    with pytest.raises(InputError, match="cannot be merged"):
        merge_scores(scores, plain)
