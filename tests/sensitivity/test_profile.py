"""The profile document: measured once, read back whole, refused where it does not belong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from apportion.allocator import Constraints
from apportion.errors import InfeasibleError, InputError
from apportion.network import Data, Network, capture
from apportion.quantizer import PointFit, Quantizer, parse_options
from apportion.sensitivity import (
    FisherSettings,
    Labels,
    Profile,
    ProfileArrays,
    check_feasible,
    check_profile,
    measure_profile,
    profile_fingerprint,
    read_profile,
    write_profile,
)
from apportion.sensitivity.profile import arrays_path

OPTIONS = parse_options("w2..3,w3g20")
Written = tuple[Path, Profile, ProfileArrays]


@pytest.fixture(scope="module")
def measured(image_network: Network, image_data: Data) -> tuple[Profile, ProfileArrays]:
    profile, arrays = measure_profile(image_network, image_data, OPTIONS)
    assert arrays is not None
    return profile, arrays


@pytest.fixture
def written(tmp_path: Path, measured: tuple[Profile, ProfileArrays]) -> Written:
    path = tmp_path / "profile.json"
    write_profile(path, *measured)
    return path, *measured


def test_a_profile_and_its_arrays_read_back_as_they_were_written(written: Written) -> None:
    path, profile, arrays = written
    found, found_arrays = read_profile(path)
    assert found == profile
    assert found_arrays is not None
    for name in ProfileArrays.model_fields:
        assert torch.equal(getattr(found_arrays, name), getattr(arrays, name))


def test_a_profile_states_the_network_and_how_it_was_measured(
    measured: tuple[Profile, ProfileArrays], image_network: Network
) -> None:
    profile, arrays = measured
    assert [layer.name for layer in profile.layers] == [layer.name for layer in image_network.layers]
    assert (profile.method, profile.labels, profile.draws, profile.samples) == ("fisher", "projected", 2, 12)
    weights = sum(image_network.weight(layer).numel() for layer in image_network.layers)
    assert profile.weight_count == weights
    assert profile.fixed_bits == profile.float_bits - 32 * weights
    assert len(arrays.channel_loss) == sum(layer.channels for layer in profile.layers)
    # The depthwise layer has 9 weights per channel, fewer than a group of 20.
    options = {layer.name: [score.option for score in layer.scores] for layer in profile.layers}
    assert options["depthwise"] == ["w2", "w3"]
    # 18 weights are fewer than 20, too.
    assert options["stem"] == ["w2", "w3"]


def test_an_option_that_no_layer_can_take_is_refused_by_name(image_network: Network) -> None:
    widest = max(layer.fan_in for layer in image_network.layers)
    check_feasible(image_network, parse_options(f"w2,w3g{widest}"), "8b", "layer")
    options = parse_options(f"w2,w3g{widest},w3g{widest + 1},w4g1000")
    with pytest.raises(InputError, match=rf"take w3g{widest + 1}, w4g1000: none has more than {widest} "):
        check_feasible(image_network, options, "8b", "layer")


def test_what_options_can_reach_is_said_of_those_that_some_layer_may_have(image_network: Network) -> None:
    constraints = Constraints(forbid={"*": ("w3",)})
    with pytest.raises(InfeasibleError, match=r"below what the options w2, w4 under the constraints can"):
        check_feasible(image_network, parse_options("w2..4"), "1b", "layer", constraints=constraints)


def test_exact_scores_need_no_arrays(tmp_path: Path, image_network: Network, image_data: Data) -> None:
    profile, arrays = measure_profile(image_network, image_data, OPTIONS[:1], method="exact")
    assert arrays is None
    assert profile.labels is None
    write_profile(tmp_path / "profile.json", profile, arrays)
    assert read_profile(tmp_path / "profile.json") == (profile, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_in_other_floats_are_scored_like_those_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    inputs = torch.randn(6, 2, 4, 4).bfloat16()
    module.bfloat16().float()
    options = parse_options("w2")
    settings = FisherSettings(labels=Labels.ALL)
    losses = []
    for each in (torch.float32, dtype):
        data = Data(inputs.to(each), None, "inputs")
        profile, _ = measure_profile(capture(module.to(each), data.inputs), data, options, settings=settings)
        losses.append([layer.scores[0].loss for layer in profile.layers])
    # Values with 8 significant bits.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("labels", list(Labels))
def test_a_score_that_is_not_finite_names_layer_and_option(
    image_network: Network, image_data: Data, labels: Labels
) -> None:
    inputs = image_data.inputs.clone()
    inputs[3, 0, 0, 0] = math.inf
    data = Data(inputs, None, image_data.name)
    with pytest.raises(InputError, match=r"layer 'stem': score is nan for option w2; check"):
        measure_profile(image_network, data, OPTIONS, settings=FisherSettings(labels=labels, share=1.0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weights", r"the network \(its weights or its program\) differ"),
        ("data", "the calibration data differ"),
        ("options", "the options or settings differ"),
        ("quantizer", "the options or settings differ"),
        ("method", "the options or settings differ"),
        ("seed", "the options or settings differ"),
        ("share", "the options or settings differ"),
        (
            "weights and seed",
            r"the network \(its weights or its program\) and the options or settings differ",
        ),
    ],
)
def test_a_profile_of_something_else_is_refused_and_says_what_differs(
    measured: tuple[Profile, ProfileArrays],
    image_network: Network,
    image_data: Data,
    change: str,
    reason: str,
) -> None:
    network, data, options, quantizer, method = image_network, image_data, OPTIONS, Quantizer(), "fisher"
    head = network.layers[-1]
    if "weights" in change:
        network = network.replace({head.weight: network.weight(head) + 1e-6})
    if change == "data":
        data = Data(data.inputs[:11], None, data.name)
    if change == "options":
        options = OPTIONS[:2]
    if change == "quantizer":
        quantizer = Quantizer(fit=PointFit.GREEDY)
    if change == "method":
        method = "exact"
    settings = FisherSettings(seed=1 if "seed" in change else 0, share=1.0 if change == "share" else 0.99)
    wanted = profile_fingerprint(network, data, options, quantizer, method, settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=reason):
        check_profile(measured[0], wanted, "profile.json")


def test_the_memory_bound_and_the_name_of_the_data_do_not_matter_for_reuse(
    measured: tuple[Profile, ProfileArrays], image_network: Network, image_data: Data
) -> None:
    renamed = Data(image_data.inputs.clone(), None, "other name")
    settings = FisherSettings(memory_bytes=2**20)
    wanted = profile_fingerprint(image_network, renamed, OPTIONS, Quantizer(), "fisher", settings)
    check_profile(measured[0], wanted, "profile.json")


def edited(path: Path, edit: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda d: d.update(version=1), "version"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("layers"), "layers"),
        (lambda d: d.update(layers=[]), "layers"),
        (lambda d: d["layers"][0].update(fan_in=0), r"layers.0.fan_in"),
        (lambda d: d["layers"][0].update(fan_in=7), r"layer 'stem' has shape .* fan_in is not 7"),
        (lambda d: d.update(weight_count=1), r"weight_count is 1, but the layers have"),
        (lambda d: d["layers"][1].update(name="stem"), "two layers have the same name"),
        (lambda d: d["layers"][0]["scores"][0].update(option="w7"), r"layer 'stem' has scores for \['w7'\]"),
        (lambda d: d["layers"][0]["scores"][0].update(option="w3"), "two scores for one option"),
        (lambda d: d["layers"][0]["scores"][0].update(loss="much"), r"loss"),
        (lambda d: d["layers"][0]["scores"][0].update(standard_error=-1), r"standard_error"),
        (lambda d: d["layers"][0]["scores"][0].update(loss=math.nan), "NaN"),
        (lambda d: d.update(options=["w2", "w2", "w3"]), "names an option twice"),
    ],
)
def test_a_wrong_document_is_refused_and_the_field_named(
    written: Written, edit: Callable[[Any], object], reason: str
) -> None:
    path = written[0]
    edited(path, edit)
    with pytest.raises(InputError, match=reason):
        read_profile(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 5000, '{"version": 1, "version": 1}'])
def test_what_is_no_profile_at_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"profile\.json"):
        read_profile(path)


def test_a_profile_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read profile .*profile\.json"):
        read_profile(tmp_path / "profile.json")


def test_missing_and_truncated_arrays_are_refused(written: Written) -> None:
    path = written[0]
    beside = arrays_path(path)
    content = beside.read_bytes()
    beside.write_bytes(content[:-5])
    with pytest.raises(InputError, match=r"cannot read .*profile\.safetensors.*profile again"):
        read_profile(path)
    beside.unlink()
    with pytest.raises(InputError, match=r"cannot read .*profile\.safetensors.*profile again"):
        read_profile(path)


def test_arrays_of_another_profile_are_refused_though_they_have_the_right_shape(
    written: Written, image_network: Network, image_data: Data
) -> None:
    path = written[0]
    other, arrays = measure_profile(image_network, image_data, OPTIONS, settings=FisherSettings(seed=1))
    write_profile(path.with_name("other.json"), other, arrays)
    arrays_path(path.with_name("other.json")).replace(arrays_path(path))
    with pytest.raises(InputError, match="written with another profile"):
        read_profile(path)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("channel_loss", None, r"channel_loss of shape None"),
        ("channel_loss", torch.zeros(3, 3), r"channel_loss of shape \(3, 3\)"),
        ("projections", math.nan, r"projections that is NaN or infinite"),
        ("channel_error", math.inf, r"channel_error that is NaN or infinite"),
    ],
)
def test_arrays_that_lack_numbers_are_refused(written: Written, name: str, value: Any, reason: str) -> None:
    path, profile, _ = written
    tensors = load_file(arrays_path(path))
    if value is None:
        del tensors[name]
    elif isinstance(value, float):
        tensors[name].view(-1)[0] = value
    else:
        tensors[name] = value
    save_file(tensors, arrays_path(path), metadata={"fingerprint": profile.fingerprint.text()})
    with pytest.raises(InputError, match=reason):
        read_profile(path)


def test_the_published_schema_accepts_a_written_profile(written: Written) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(written[0].read_text(encoding="utf-8")), Profile.json_schema())
