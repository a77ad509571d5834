"""Profiles, plans and packed weights that are damaged, hostile or of another network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DEEP = "[" * 1000 + "]" * 1000


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_profile_of_another_network_is_refused_and_force_measures_again(
    allocate: Any, refused: Any, profiled: Path, nets: Path, save_inputs: Any, contents: Any
) -> None:
    model = ("--model", f"{nets}:small", "--data", save_inputs(), "--options", "w2,w4,w8")
    message = refused("--budget", "4b", "--out", profiled, *model)
    assert "the network (its weights or its program) and the calibration data differ" in message
    assert "--force" in message
    before = contents(profiled)
    outcome = allocate("profile", "--force", "--json", "--out", profiled, *model)
    assert outcome.code == 0
    assert "measuring again" in outcome.err
    assert [layer["name"] for layer in outcome.json["layers"]] == ["0", "3"]
    assert contents(profiled)["profile.json"] != before["profile.json"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--samples", "63", "--options", "w2,w4,w8"), "the calibration data"),
        (("--samples", "64", "--options", "w2,w4"), "the options or settings"),
        (("--samples", "64", "--options", "w2,w4,w8", "--seed", "1"), "the options or settings"),
    ],
)
def test_a_profile_measured_otherwise_is_refused_with_what_differs(
    refused: Any, profiled: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in refused("profile", "--out", profiled, *arguments)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (DEEP, "levels deep"),
        ('{"version": 2}', "is not valid"),
        ('{"version": NaN}', "NaN"),
        ("null", "is not valid"),
        ("\x00\x00", "not JSON"),
    ],
)
def test_documents_that_are_none_are_refused_by_every_stage(
    refused: Any, finished: Path, text: str, reason: str
) -> None:
    for name in ("plan.json", "profile.json"):
        (finished / name).write_text(text)
        assert reason in refused("show", finished / name)
    assert reason in refused("solve", "--budget", "4b", "--force", "--out", finished)
    assert reason in refused("finalize", "--force", "--out", finished)
    assert reason in refused("plot", finished)


def test_a_plan_of_a_hundred_megabytes_is_refused_unread(allocate: Any, finished: Path) -> None:
    with (finished / "plan.json").open("wb") as file:
        file.truncate(100 * 10**6)
    outcome = allocate("show", finished)
    assert outcome.code == 2
    assert "bytes" in outcome.err


def test_a_plan_that_misses_a_layer_names_it(refused: Any, finished: Path) -> None:
    edit(finished / "plan.json", lambda plan: plan["layers"].pop(2))
    message = refused("finalize", "--force", "--out", finished)
    assert "no entry for layer 'identity_block.conv2'" in message


def test_a_plan_that_invents_a_layer_names_it(refused: Any, finished: Path) -> None:
    edit(
        finished / "plan.json",
        lambda plan: plan["layers"].append(dict(plan["layers"][0], name="attic")),
    )
    assert "attic" in refused("finalize", "--force", "--out", finished)


def test_a_plan_with_another_shape_names_layer_and_shapes(refused: Any, finished: Path) -> None:
    edit(finished / "plan.json", lambda plan: plan["layers"][8].update(shape=[10, 40]))
    message = refused("finalize", "--force", "--out", finished)
    assert "'classifier'" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plan: plan["layers"].append(plan["layers"][0]), "occurs twice"),
        (lambda plan: plan["layers"][0].update(strips={"w8": "0-3"}, option=None), "stem"),
        (lambda plan: plan["layers"][0].update(option="w4", strips={"w8": "0-15"}), "stem"),
        (lambda plan: plan.update(budgets=["lots"]), "'lots' is not a budget"),
        (lambda plan: plan.update(quantizer={"search": "magic"}), "magic"),
        (lambda plan: plan.update(extra=1), "extra"),
        (lambda plan: plan.pop("complexity"), "complexity"),
        (lambda plan: plan["complexity"].update(weight_count=0), "weight_count"),
    ],
)
def test_an_edit_that_breaks_the_plan_is_named(
    refused: Any, finished: Path, change: Any, reason: str
) -> None:
    edit(finished / "plan.json", change)
    assert reason in refused("finalize", "--force", "--out", finished)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["complexity"].update(fixed_bits=0),
        lambda plan: plan["complexity"].update(weight_count=10**9),
        lambda plan: plan["complexity"].update(size_bits=8),
        lambda plan: plan["layers"][0].update(size_bits=8, mean_bits=0.1),
    ],
)
def test_sizes_written_into_a_plan_by_hand_do_not_survive(allocate: Any, finished: Path, change: Any) -> None:
    true = json.loads((finished / "plan.json").read_text())
    edit(finished / "plan.json", change)
    outcome = allocate("finalize", "--force", "--samples", "64", "--json", "--out", finished)
    if outcome.code == 0:
        assert outcome.json["plan"]["complexity"] == true["complexity"]
        # What the scores said is dropped with the certificate.
        solved = ("predicted_loss", "confidence", "regret")
        assert outcome.json["plan"]["layers"] == [
            {name: value for name, value in layer.items() if name not in solved} for layer in true["layers"]
        ]
    else:
        assert outcome.code == 2
        assert "counted, not chosen" in outcome.err


@pytest.mark.parametrize(
    ("stage", "name"), [("plot", "profile.safetensors"), ("evaluate", "weights.safetensors")]
)
def test_a_damaged_companion_is_refused_by_its_name(
    refused: Any, finished: Path, stage: str, name: str
) -> None:
    path = finished / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert name in refused(stage, finished)


def test_arrays_of_another_profile_are_refused(
    allocate: Any, refused: Any, profiled: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert allocate("profile", "--samples", "8", "--options", "w2,w8", "--out", other).code == 0
    (other / "profile.safetensors").replace(profiled / "profile.safetensors")
    assert "do not belong together" in refused("solve", "--budget", "4b", "--out", profiled)
