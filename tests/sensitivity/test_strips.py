"""Strips of inputs: scored each on its own, and together what the layer is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Data, LayerCall, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import (
    FisherSettings,
    Labels,
    check_profile,
    measure_profile,
    profile_fingerprint,
    read_profile,
    score_fisher,
    write_profile,
)
from apportion.sensitivity.candidates import cut_of, perturbations
from apportion.sensitivity.projections import project, project_strips

OPTIONS = parse_options("w2..4,w2x2")
QUANTIZER = Quantizer()
# Linear layers of the images network have 6 inputs.
CUT = FisherSettings(labels=Labels.ALL, share=1.0, cut="inputs:3")
WHOLE = FisherSettings(labels=Labels.ALL, share=1.0)
# Float32 sums in another order.
TOLERANCE = 1e-4


def classes(shape: tuple[int, ...] = (9,)) -> tuple[Network, Data]:
    """One linear layer of 12 inputs and 5 classes, and inputs of the given leading shape for it."""
    torch.manual_seed(0)
    data = Data(torch.randn(*shape, 12), None, "normal")
    return capture(nn.Linear(12, 5), data.inputs), data


def changed_by(network: Network, data: Data, change: Tensor) -> Tensor:
    """``1/2 d' F d`` of every sample when the only layer's weight changes by `change`."""
    p = network.run(data.inputs).detach().double().softmax(-1)
    d = (data.inputs @ change.T).double()
    return ((p * d.square()).sum(-1) - (p * d).sum(-1).square()) / 2


@pytest.mark.parametrize("inputs", [2, 4, 6])
def test_the_score_of_a_strip_is_the_quadratic_form_of_that_strip_alone(inputs: int) -> None:
    network, data = classes()
    (layer,) = network.layers
    settings = FisherSettings(labels=Labels.ALL, share=1.0, cut=f"inputs:{inputs}")
    found = score_fisher(network, data, OPTIONS, QUANTIZER, settings)
    assert found.channel_loss.shape == (12 // inputs, len(OPTIONS))
    for strip in range(12 // inputs):
        part = slice(strip * inputs, (strip + 1) * inputs)
        weight = network.weight(layer).detach()[:, part]
        for column, option in enumerate(OPTIONS):
            change = torch.zeros(5, 12)
            change[:, part] = QUANTIZER.quantize(weight, option).dequantize() - weight
            expected = changed_by(network, data, change)
            assert float(found.channel_loss[strip, column]) == pytest.approx(
                float(expected.mean()), rel=TOLERANCE
            )
            assert float(found.channel_error[strip, column]) == pytest.approx(
                float(expected.std() / len(expected) ** 0.5), rel=1e-3
            )


@pytest.mark.parametrize("shape", [(9,), (3, 7)])
def test_the_projections_of_strips_add_up_to_that_of_the_layer(shape: tuple[int, ...]) -> None:
    network, data = classes(shape)
    (layer,) = network.layers
    call = LayerCall(layer, layer.nodes[0])
    deltas = perturbations(network, layer, OPTIONS, QUANTIZER, "inputs:4")
    cotangents = [torch.randn(*shape, 5, generator=torch.Generator().manual_seed(draw)) for draw in range(2)]
    strips = project_strips(call, data.inputs, cotangents, deltas, cut_of(layer, "inputs:4"))
    assert strips.shape == (3, shape[0], 2, len(OPTIONS))
    whole = project(layer, call, data.inputs, cotangents, deltas).sum(0)
    torch.testing.assert_close(strips.sum(0), whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_cut_layer_under_one_option_is_the_layer_with_a_step_per_group(
    image_network: Network, image_data: Data
) -> None:
    grouped = parse_options("w2..4,w8,w2x2")
    by_strip = score_fisher(image_network, image_data, grouped, QUANTIZER, CUT).layer_loss()
    groups = parse_options("w2..4g3,w8g3,w2x2g3")
    by_group = score_fisher(image_network, image_data, groups, QUANTIZER, WHOLE).layer_loss()
    plain = score_fisher(image_network, image_data, grouped, QUANTIZER, WHOLE).layer_loss()
    for row, layer in enumerate(image_network.layers):
        expected = by_group if layer.kind == "linear" else plain
        torch.testing.assert_close(by_strip[row], expected[row], rtol=TOLERANCE, atol=1e-12)
    profile, _ = measure_profile(image_network, image_data, grouped, settings=CUT)
    twin, _ = measure_profile(image_network, image_data, groups, settings=WHOLE)
    for layer, other in zip(profile.layers, twin.layers, strict=True):
        if layer.kind == "linear":
            assert [score.size_bits for score in layer.scores] == [score.size_bits for score in other.scores]


def test_layers_that_cannot_be_cut_keep_the_scores_of_their_channels(
    image_network: Network, image_data: Data
) -> None:
    cut = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, CUT)
    whole = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, WHOLE)
    counts = [cut_of(layer, CUT.cut).strips for layer in image_network.layers]
    starts = torch.tensor([0, *counts]).cumsum(0)
    channels = torch.tensor([0, *(layer.channels for layer in image_network.layers)]).cumsum(0)
    assert counts == [6, 6, 2, 2]
    assert len(cut.channel_loss) == sum(counts)
    for layer, (start, stop), (first, last) in zip(
        image_network.layers, pairwise(starts), pairwise(channels), strict=True
    ):
        if layer.kind == "conv":
            found, expected = cut.channel_loss[start:stop], whole.channel_loss[first:last]
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-12)


def test_a_profile_says_which_layers_are_cut_and_reads_back(
    image_network: Network, image_data: Data, tmp_path: Path
) -> None:
    profile, arrays = measure_profile(image_network, image_data, OPTIONS, settings=CUT)
    assert [layer.cut for layer in profile.layers] == [None, None, "inputs:3", "inputs:3"]
    assert [layer.strips for layer in profile.layers] == [6, 6, 2, 2]
    assert profile.cut == "inputs:3"
    write_profile(tmp_path / "profile.json", profile, arrays)
    found, found_arrays = read_profile(tmp_path / "profile.json")
    assert found == profile
    assert found_arrays is not None
    assert found_arrays.channel_loss.shape == (16, len(OPTIONS))


def test_a_profile_of_channels_is_not_one_of_strips(image_network: Network, image_data: Data) -> None:
    profile, _ = measure_profile(image_network, image_data, OPTIONS, settings=WHOLE)
    assert profile.cut is None
    wanted = profile_fingerprint(image_network, image_data, OPTIONS, QUANTIZER, "fisher", CUT)
    with pytest.raises(InputError, match="the options or settings differ"):
        check_profile(profile, wanted, "profile.json")


def test_exact_scores_per_strip_are_refused(image_network: Network, image_data: Data) -> None:
    with pytest.raises(InputError, match=r"exact scores exist per layer only, .* per inputs:3; use Fisher"):
        measure_profile(image_network, image_data, OPTIONS, method="exact", settings=CUT)


@pytest.mark.parametrize("cut", ["inputs:6", "inputs:4"])
def test_a_cut_that_fits_no_layer_is_refused_with_the_inputs_there_are(
    image_network: Network, image_data: Data, cut: str
) -> None:
    with pytest.raises(
        InputError, match=rf"no layer can be cut per {cut}: .* here they have 6 inputs; choose"
    ):
        measure_profile(image_network, image_data, OPTIONS, settings=FisherSettings(cut=cut))


def test_a_group_must_fit_into_a_strip(image_network: Network, image_data: Data) -> None:
    with pytest.raises(InputError, match="layer 'shared' has 3 weights per strip and output channel, fewer"):
        measure_profile(image_network, image_data, parse_options("w4g4"), settings=CUT)
    profile, _ = measure_profile(image_network, image_data, parse_options("w4,w4g4"), settings=CUT)
    options = {layer.name: [score.option for score in layer.scores] for layer in profile.layers}
    assert options["shared"] == ["w4"]
    assert options["stem"] == ["w4", "w4g4"]
