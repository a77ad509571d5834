"""The sensitivity chart: its numbers without drawing, and that it draws whatever they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from apportion.errors import InputError
from apportion.sensitivity import (
    Profile,
    ProfileArrays,
    draw_sensitivity,
    sensitivity_data,
    solve_plan,
)

MakeProfile = Callable[..., tuple[Profile, ProfileArrays]]
MANY = "w2..8,w2..4x2,w2..3x3,w2..8g16"


def drawn(figure: Figure) -> bytes:
    """The picture; whatever cannot be drawn warns or fails here."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=20)
    return picture.getvalue()


def rescaled(profile: Profile, loss: float, error: float) -> Profile:
    """The profile with these numbers as first score of its first layer."""
    layer = profile.layers[0]
    score = layer.scores[0].model_copy(update={"loss": loss, "standard_error": error})
    changed = layer.model_copy(update={"scores": (score, *layer.scores[1:])})
    return profile.model_copy(update={"layers": (changed, *profile.layers[1:])})


def test_the_numbers_are_the_scores_of_the_profile(make_profile: MakeProfile) -> None:
    profile, _ = make_profile(shapes=((2, 40), (3, 10)), options="w2,w4,w2x3,w3g20")
    data = sensitivity_data(profile)
    assert data.layers == tuple(layer.name for layer in profile.layers)
    assert data.options == ("w2", "w3g20", "w4", "w2x3")
    assert data.code_bits.tolist() == [2, 3, 4, 6]
    assert data.points.tolist() == [1, 1, 1, 3]
    for row, layer in enumerate(profile.layers):
        for score in layer.scores:
            column = data.options.index(score.option)
            assert data.loss[row, column] == score.loss
            assert data.error[row, column] == score.standard_error
    # Ten weights are no group of twenty.
    assert np.isnan(data.loss).tolist() == [[False] * 4, [False, True, False, False]]
    assert data.share is None


def test_error_bars_reach_one_standard_error_and_end_at_the_floor(make_profile: MakeProfile) -> None:
    profile, _ = make_profile()
    data = sensitivity_data(rescaled(profile, 0.5, 0.7))
    assert data.high[0, 0] == pytest.approx(1.2)
    assert data.low[0, 0] == data.floor
    assert 0 < data.floor < data.loss[data.loss > 0].min()
    assert (data.low[1:] < data.loss[1:]).all()
    assert (data.high[1:] > data.loss[1:]).all()


@pytest.mark.parametrize("loss", [0.0, -1e-9])
def test_a_loss_without_a_logarithm_is_drawn_at_the_floor(make_profile: MakeProfile, loss: float) -> None:
    profile, arrays = make_profile()
    data = sensitivity_data(rescaled(profile, loss, 0.0), solve_plan(profile, arrays, "4b", "layer"))
    assert data.loss[0, 0] == loss
    assert data.low[0, 0] == data.high[0, 0] == data.floor
    assert drawn(draw_sensitivity(data))


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_shares_tell_what_the_plan_chose(make_profile: MakeProfile, unit: str) -> None:
    profile, arrays = make_profile()
    plan = solve_plan(profile, arrays, "4b", unit)  # type: ignore[arg-type]
    share = sensitivity_data(profile, plan).share
    assert share is not None
    assert share.sum(1) == pytest.approx(1.0)
    for row, layer in enumerate(plan.layers):
        options = layer.strip_options()
        for column, option in enumerate(profile.options):
            assert share[row, column] == options.count(option) / len(options)
    assert bool(((share > 0) & (share < 1)).any()) == (unit == "channel")


def test_a_plan_of_another_network_is_refused_by_the_layer(make_profile: MakeProfile) -> None:
    profile, arrays = make_profile()
    larger, larger_arrays = make_profile(shapes=((4, 30), (6, 50), (3, 20), (2, 10)))
    with pytest.raises(InputError, match=r"layer 'layers.3.linear' is in the plan alone"):
        sensitivity_data(profile, solve_plan(larger, larger_arrays, "4b", "layer"))
    with pytest.raises(InputError, match=r"layer 'layers.3.linear' is in the profile alone"):
        sensitivity_data(larger, solve_plan(profile, arrays, "4b", "layer"))


def test_an_option_without_a_score_is_refused_with_the_layer(make_profile: MakeProfile) -> None:
    profile, _ = make_profile()
    other, arrays = make_profile(options="w6")
    with pytest.raises(InputError, match=r"layer 'layers.0.linear' has option w6 in the plan"):
        sensitivity_data(profile, solve_plan(other, arrays, "7b", "layer"))


@pytest.mark.parametrize("layers", [1, 20, 150, 400])
@pytest.mark.parametrize("options", ["w4", "w2..8", MANY])
def test_a_chart_grows_with_the_layers_and_names_no_more_than_fit(
    make_profile: MakeProfile, layers: int, options: str
) -> None:
    profile, arrays = make_profile(shapes=((2, 20),) * layers, options=options)
    plan = solve_plan(profile, arrays, "16b", "channel")
    figure = draw_sensitivity(sensitivity_data(profile, plan))
    axes = figure.axes[0]
    names = axes.get_xticklabels()
    width_inches = figure.get_figwidth()
    assert 0 < len(names) <= min(layers, width_inches / 0.1)
    assert axes.get_yscale() == "log"
    many = len(profile.options) > 10
    # The colour scale has axes of its own.
    assert len(figure.axes) == (2 if many else 1)
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(entries) <= 11
    assert set(profile.options) <= set(entries) or many
    if layers == 20:
        assert drawn(figure)


def test_the_width_grows_from_20_to_150_layers(make_profile: MakeProfile) -> None:
    widths = [
        draw_sensitivity(sensitivity_data(make_profile(shapes=((2, 20),) * layers)[0])).get_figwidth()
        for layers in (20, 150, 5000)
    ]
    assert widths[0] < widths[1] <= widths[2] < 40
