"""From a profile to a problem: what an option costs is what the packed file will take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.errors import InputError
from apportion.quantizer import parse_option, stored_bits
from apportion.sensitivity import Profile, ProfileArrays, pose, problem_of, uniform_options

MakeProfile = Callable[..., tuple[Profile, ProfileArrays]]
option_sets = st.sampled_from(["w2..5", "w2,w4", "w2..4,w2x2,w4g16", "w3g8,w3g20,w5"])


@settings(derandomize=True, deadline=None)
@given(option_set=option_sets, seed=st.integers(0, 1000))
def test_costs_of_channels_add_up_to_the_stored_bits_of_the_layer(
    make_profile: MakeProfile, option_set: str, seed: int
) -> None:
    profile, arrays = make_profile(options=option_set)
    problem = problem_of(profile, arrays, "channel", 0)
    generator = np.random.default_rng(seed)
    start = 0
    for layer in profile.layers:
        chosen = generator.integers(0, len(profile.options), layer.channels)
        # A mix: where all channels agree no codes are stored, and the layer is smaller.
        chosen[0], chosen[1] = 0, 1
        units = np.arange(start, start + layer.channels)
        start += layer.channels
        options = [parse_option(profile.options[index]) for index in chosen]
        expected = stored_bits(options, layer.fan_in, len(profile.options))
        assert int(problem.cost[units, chosen].sum()) == expected
    assert start == problem.units


def test_a_uniform_layer_takes_no_more_than_its_channels_do(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    by_layer = problem_of(profile, None, "layer", 0).cost
    by_channel = problem_of(profile, arrays, "channel", 0).cost
    start = 0
    for row, layer in enumerate(profile.layers):
        channels = by_channel[start : start + layer.channels].sum(0)
        start += layer.channels
        # Two bits name one of four options.
        assert (channels - by_layer[row]).tolist() == [2 * layer.channels] * 4


def test_problems_carry_the_scores_and_forbid_options_that_do_not_fit(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile(shapes=((2, 40), (3, 10)), options="w2,w3,w3g20")
    whole, parts = (problem_of(profile, arrays, unit, 1000) for unit in ("layer", "channel"))
    assert whole.allowed is not None
    assert parts.allowed is not None
    assert whole.allowed.tolist() == [[True, True, True], [True, True, False]]
    assert parts.allowed[:2].all()
    assert parts.allowed[2:].tolist() == [[True, True, False]] * 3
    for row, layer in enumerate(profile.layers):
        for score in layer.scores:
            assert whole.loss[row, profile.options.index(score.option)] == score.loss
    assert np.array_equal(parts.loss, arrays.channel_loss.numpy())
    assert (whole.budget, parts.budget) == (1000, 1000)
    assert parts.unit_name(2) == "layer 'layers.1.linear[0]'"


def test_exact_scores_cannot_be_chosen_per_channel(make_profile: MakeProfile) -> None:
    profile, _ = make_profile()
    with pytest.raises(InputError, match="exact scores, which exist per layer only"):
        problem_of(profile, None, "channel", 0)


def test_one_step_for_the_tensor_cannot_be_chosen_per_channel(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile(options="w2,w3t,w4t")
    with pytest.raises(InputError, match=r"options w3t, w4t have one step for the whole tensor"):
        problem_of(profile, arrays, "channel", 0)


def test_uniform_options_are_those_that_every_layer_can_take(make_profile: MakeProfile) -> None:
    profile, _ = make_profile(shapes=((2, 40), (3, 10)), options="w2,w3,w3g20")
    found = uniform_options(profile)
    assert list(found) == ["w2", "w3"]
    size_bits, loss = found["w3"]
    assert size_bits == (2 * 40 * 3 + 2 * 16) + (3 * 10 * 3 + 3 * 16)
    assert loss == pytest.approx(sum(layer.scores[1].loss for layer in profile.layers))


@settings(derandomize=True, deadline=None)
@given(tile=st.integers(2, 7), seed=st.integers(0, 1000))
def test_a_tile_sums_its_channels_and_pays_for_one_code(
    make_profile: MakeProfile, tile: int, seed: int
) -> None:
    profile, arrays = make_profile(shapes=((9, 30), (14, 20), (1, 8)), seed=seed)
    posed = pose(profile, arrays, f"tile:{tile}")
    channels = problem_of(profile, arrays, "channel", 0)
    generator = np.random.default_rng(seed)
    choice = generator.integers(0, posed.problem.options, posed.problem.units)
    start = 0
    for row, (layer, options) in enumerate(zip(profile.layers, posed.assigned(choice), strict=True)):
        units = np.unique(posed.member[start : start + layer.channels])
        assert len(units) == -(-layer.channels // tile)
        columns = [profile.options.index(option) for option in options]
        if posed.whole[row]:
            assert len(units) == 1
        else:
            expected = channels.loss[range(start, start + layer.channels), columns].sum()
            assert posed.problem.loss_of(choice)[units].sum() == pytest.approx(expected, rel=1e-12)
        parsed = [parse_option(option) for option in options]
        bits = stored_bits(parsed, layer.fan_in, len(profile.options), tile=tile)
        # Where all tiles agree no codes are stored, and the layer is smaller than its units.
        assert bits <= posed.problem.cost_of(choice)[units].sum() <= bits + 2 * len(units)
        start += layer.channels


def test_a_layer_of_one_tile_is_one_unit_without_a_code(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile(shapes=((4, 30), (6, 50)))
    posed = pose(profile, arrays, "tile:4")
    assert posed.whole == (True, False)
    assert posed.problem.cost[0].tolist() == [score.size_bits for score in profile.layers[0].scores]
    assert posed.problem.loss[0].tolist() == [score.loss for score in profile.layers[0].scores]
    assert posed.problem.unit_names == ("layers.0.linear", "layers.1.linear[0-3]", "layers.1.linear[4-5]")


def test_a_profile_of_channels_has_no_scores_for_runs_of_inputs(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    with pytest.raises(
        InputError, match=r"scores per channel, and none to choose per inputs:10; profile with"
    ):
        pose(profile, arrays, "inputs:10")
