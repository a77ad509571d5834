"""Networks and data that cannot be used: refused with their own name, and nothing written."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def refuse(refused: Any, nets: Path, save_inputs: Any, tmp_path: Path) -> Any:
    """Run the whole job on a factory of `nets` and some data; what is not given is fine."""

    def check(factory: str = "small", data: object = None, *more: object) -> str:
        model = factory if ":" in factory or factory.endswith(".pt2") else f"{nets}:{factory}"
        data = save_inputs() if data is None else data
        message: str = refused(
            "--budget", "4b", "--model", model, "--data", data, "--out", tmp_path / "run", *more
        )
        return message

    return check


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("without_layers", "layer"),
        ("failing", "the disk of the author is full"),
        ("not_a_module", "must return a torch.nn.Module"),
        ("smal", "has no function 'smal'; it has small"),
        ("with_nan", "nan"),
        ("nowhere.pt2", "nowhere.pt2"),
        ("nowhere.py:small", "there is no file nowhere.py"),
        ("no_such_module:small", "no_such_module"),
    ],
)
def test_a_model_that_cannot_be_is_refused(refuse: Any, factory: str, reason: str) -> None:
    assert reason.lower() in refuse(factory).lower()


def test_weights_that_are_not_finite_name_their_tensor(refuse: Any) -> None:
    assert "'3" in refuse("with_nan")


def test_weights_so_large_that_the_output_overflows_are_refused(refuse: Any) -> None:
    assert "NaN or infinite" in refuse("huge")


@pytest.mark.parametrize("folder_exists", [False, True])
def test_scores_that_are_not_finite_name_layer_and_option(
    refuse: Any, tmp_path: Path, folder_exists: bool
) -> None:
    if folder_exists:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
    message = refuse("overflowing")
    assert "layer 'stem': score is" in message
    assert "option w2" in message


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (np.zeros((8, 1, 9, 9), np.float32), "of shape (2, 1, 9, 9)"),
        (np.zeros((8, 3, 8, 8), np.float32), "channels"),
        (np.zeros((8,), np.float32), "shape"),
        (np.zeros((8, 1, 8, 8), np.int64), "long"),
        (np.zeros((0, 1, 8, 8), np.float32), "no samples"),
        (np.full((8, 1, 8, 8), np.nan, np.float32), "nan"),
        (np.full((8, 1, 8, 8), np.inf, np.float32), "infinite"),
        (np.full((8, 1, 8, 8), "x"), "inputs must be uint8 pixels, floats"),
        (np.zeros((8, 1, 8, 8), np.complex64), "complex"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    refuse: Any, save_inputs: Any, inputs: np.ndarray[Any, Any], reason: str
) -> None:
    assert reason in refuse("small", save_inputs(inputs)).lower()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(np.zeros(7, np.int64), "labels"), (np.full(16, 5), "greatest label is 5"), (np.full(16, -1), "-1")],
)
def test_labels_that_do_not_fit_are_refused(
    refuse: Any, save_inputs: Any, labels: np.ndarray[Any, Any], reason: str
) -> None:
    assert reason in refuse("small", save_inputs(labels=labels))


def test_held_out_data_is_checked_before_the_work(refuse: Any, save_inputs: Any) -> None:
    data = save_inputs()
    wrong = save_inputs(np.zeros((4, 1, 5, 5), np.float32), "wrong.npz")
    assert "wrong.npz" in refuse("small", data, "--eval-data", wrong)


def test_pickled_objects_in_an_archive_are_never_loaded(refuse: Any, tmp_path: Path) -> None:
    hostile = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    np.savez(tmp_path / "hostile.npz", inputs=hostile)
    assert "pickle" in refuse("small", tmp_path / "hostile.npz")


def test_truncated_and_garbled_archives_are_refused(refuse: Any, save_inputs: Any, tmp_path: Path) -> None:
    whole = save_inputs().read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        assert "cannot read" in refuse("small", tmp_path / "cut.npz")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 64)
    assert "cannot read" in refuse("small", tmp_path / "cut.safetensors")


def test_an_archive_without_inputs_says_what_it_has(refuse: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", pictures=np.zeros((4, 1, 8, 8), np.float32))
    assert "it has pictures" in refuse("small", tmp_path / "other.npz")


def test_a_pickle_named_pt2_is_not_unpickled(refuse: Any, tmp_path: Path) -> None:
    for name, write in (("plain", pickle.dumps), ("torch", _torch_saved)):
        (tmp_path / f"{name}.pt2").write_bytes(write(Bomb(tmp_path / "exploded")))
        assert f"{name}.pt2" in refuse(str(tmp_path / f"{name}.pt2"))


def test_a_truncated_pt2_is_refused(refuse: Any, tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "whole.pt2")
    whole = (tmp_path / "whole.pt2").read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt2").write_bytes(whole[:length])
        assert "cut.pt2" in refuse(str(tmp_path / "cut.pt2"))


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape", "garbage"])
def test_weights_that_do_not_fit_the_factory_are_refused(refuse: Any, tmp_path: Path, wrong: str) -> None:
    tensors = {
        "0.weight": torch.zeros(8, 1, 3, 3), "0.bias": torch.zeros(8),
        "3.weight": torch.zeros(5, 288), "3.bias": torch.zeros(5),
    }  # fmt: skip
    if wrong == "missing":
        del tensors["3.bias"]
    elif wrong == "extra":
        tensors["9.bias"] = torch.zeros(5)
    elif wrong == "shape":
        tensors["3.bias"] = torch.zeros(6)
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    if wrong == "garbage":
        path.write_bytes(path.read_bytes()[:100])
    names = {"missing": "3.bias", "extra": "9.bias", "shape": "3.bias", "garbage": "net.safetensors"}
    assert names[wrong] in refuse("small", None, "--weights", path)


class Bomb:
    """Unpickling it leaves a file, which the folder listing would show."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _torch_saved(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()
