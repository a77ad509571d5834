"""Exporting a finished run: a file beside it, an account of its size, and nothing on bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import apportion
from apportion.demo import digits_data


def test_onnx_is_written_into_the_run_and_computes_the_same(
    allocate: Any, finished: Path, contents: Any
) -> None:
    before = contents(finished)
    outcome = allocate("export", finished, "--format", "onnx")
    assert outcome.code == 0, outcome
    path = finished / "network.onnx"
    assert {name: digest for name, digest in contents(finished).items() if name != path.name} == before
    printed = " ".join(outcome.out.split())
    assert "strided_block.conv2" in printed
    assert f"{path.stat().st_size:,} bytes" in printed
    assert f"wrote {path}" in outcome.err
    inputs = digits_data()[1].inputs
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["output"], {session.get_inputs()[0].name: inputs.numpy()})
    with torch.inference_mode():
        assert np.abs(found - apportion.load(finished)(inputs).numpy()).max() < 1e-4


def test_the_account_is_one_json_object(allocate: Any, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "net.onnx"
    outcome = allocate("export", finished, "--format", "onnx", "--output", path, "--json")
    assert outcome.code == 0, outcome
    assert outcome.json["path"] == str(path)
    assert outcome.json["file_bytes"] == path.stat().st_size
    assert outcome.json["layers"][0]["name"] == "stem"


def test_a_file_that_is_there_is_kept_unless_forced(allocate: Any, refused: Any, finished: Path) -> None:
    (finished / "network.onnx").write_text("mine")
    assert "--force to replace" in refused("export", finished, "--format", "onnx")
    assert allocate("export", finished, "--format", "onnx", "--force").code == 0
    assert (finished / "network.onnx").stat().st_size > 4


@pytest.mark.parametrize("arguments", [(), ("--format", "onnxx")])
def test_a_format_must_be_given_and_known(refused: Any, finished: Path, arguments: tuple[str, ...]) -> None:
    assert "--format" in refused("export", finished, *arguments)


def test_a_run_that_is_not_finished_is_refused(refused: Any, profiled: Path) -> None:
    assert "weights.safetensors" in refused("export", profiled, "--format", "onnx")


def test_plain_weights_are_written(allocate: Any, finished: Path) -> None:
    outcome = allocate("export", finished, "--format", "safetensors", "--json")
    assert outcome.code == 0, outcome
    path = finished / "network.safetensors"
    assert outcome.json == {"path": str(path), "file_bytes": path.stat().st_size}
    assert "stem.weight" in load_file(path)


def test_a_recipe_refuses_mixed_channels_by_layer_and_lowers_them_on_request(
    allocate: Any, refused: Any, finished: Path
) -> None:
    message = refused("export", finished, "--format", "torchao")
    assert "layer 'stem' cannot be stored in torchao as planned" in message
    assert "--lower" in message
    outcome = allocate("export", finished, "--format", "modelopt", "--lower")
    assert outcome.code == 0, outcome
    assert "classifier: its channels have w4, w8, and a layer has one width: 8 bits" in outcome.out
    assert "classifier.weight_quantizer" in (finished / "modelopt.py").read_text()


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_lowering_is_refused_where_nothing_needs_it(refused: Any, finished: Path, name: str) -> None:
    assert "--lower goes with recipes" in refused("export", finished, "--format", name, "--lower")


def test_integer_kernels_are_for_onnx(allocate: Any, refused: Any, finished: Path) -> None:
    arguments = ("export", finished, "--kernels", "integer", "--format")
    assert "--kernels goes with --format onnx" in refused(*arguments, "safetensors")
    outcome = allocate(*arguments, "onnx", "--json")
    assert outcome.code == 0, outcome
    assert 1e-4 < outcome.json["difference"] < 1
    again = allocate(*arguments, "onnx", "--force")
    share = f"{outcome.json['relative_difference']:.1g} of the greatest output"
    assert f"made-up samples, {share}" in " ".join(again.out.split())
