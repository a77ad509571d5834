"""Data: every form becomes the same tensors, and what cannot feed a network is refused at once."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file
from torch import nn

from apportion.errors import InputError
from apportion.network import Data, Network, capture, check_data, load_data, spread_order

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_pixels_become_planes_between_0_and_1(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path / "a.npz", images=PIXELS, labels=LABELS))
    assert data.inputs.shape == (6, 3, 5, 4)
    assert data.inputs.dtype == torch.float32
    assert data.inputs[1, 2, 3, 0] == np.float32(PIXELS[1, 3, 0, 2]) / np.float32(255)
    assert data.labels is not None
    assert data.labels.tolist() == LABELS.tolist()
    assert len(data) == 6


@given(
    pixels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3)),
    mean=st.floats(-1, 1),
    std=st.floats(0.1, 2),
)
@settings(max_examples=25, derandomize=True, deadline=None)
def test_normalizing_is_undone_by_its_inverse(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray[Any, Any], mean: float, std: float
) -> None:
    path = npz(tmp_path_factory.mktemp("data") / "grey.npz", images=pixels)
    inputs = load_data(path, mean=[mean], std=[std]).inputs
    assert inputs.shape == (len(pixels), 1, *pixels.shape[1:])
    np.testing.assert_array_equal(
        (inputs * std + mean).mul(255).round().squeeze(1).numpy(), pixels.astype(np.float32)
    )


def test_mean_and_std_act_per_channel(tmp_path: Path) -> None:
    spec = npz(tmp_path / "a.npz", images=PIXELS)
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    plain, given_ = load_data(spec).inputs, load_data(spec, mean=mean, std=std).inputs
    for channel in range(3):
        torch.testing.assert_close(given_[:, channel], (plain[:, channel] - mean[channel]) / std[channel])


def test_floats_pass_and_integers_are_token_ids(tmp_path: Path) -> None:
    floats = np.linspace(-1, 1, 24).reshape(2, 3, 4)
    assert torch.equal(
        load_data(npz(tmp_path / "a.npz", inputs=floats)).inputs, torch.tensor(floats, dtype=torch.float32)
    )
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        ids = load_data(npz(tmp_path / "b.npz", inputs=np.arange(6, dtype=dtype).reshape(2, 3))).inputs
        assert ids.dtype == torch.int64
        assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_part_of_a_file_is_chosen_by_the_prefix_of_its_arrays(tmp_path: Path) -> None:
    spec = npz(
        tmp_path / "a.npz",
        train_images=PIXELS,
        train_labels=LABELS,
        test_images=PIXELS[:2],
        tokens=np.zeros((2, 3), np.int64),
    )
    train, test = load_data(f"{spec}:train"), load_data(f"{spec}:test")
    assert (len(train), len(test)) == (6, 2)
    assert train.labels is not None
    assert test.labels is None
    assert load_data(f"{spec}:tokens").inputs.shape == (2, 3)
    with pytest.raises(
        InputError, match=r"has no array 'images' or 'inputs'; it has train_images, train_labels"
    ):
        load_data(spec)


def test_all_forms_of_the_same_data_are_equal(tmp_path: Path) -> None:
    save_file(
        {"images": torch.from_numpy(PIXELS), "labels": torch.from_numpy(LABELS)}, tmp_path / "a.safetensors"
    )
    np.save(tmp_path / "pixels.npy", PIXELS)
    (tmp_path / "loaders.py").write_text(
        "import numpy, pathlib, torch\n"
        "pixels = numpy.load(pathlib.Path(__file__).parent / 'pixels.npy')\n"
        "def arrays(): return pixels, numpy.arange(6) % 3\n"
        "def tensors(): return torch.from_numpy(pixels), torch.arange(6) % 3\n"
        "def inputs(): return pixels\n"
    )
    expected = load_data(npz(tmp_path / "a.npz", images=PIXELS, labels=LABELS))
    assert expected.labels is not None
    for form in ("a.safetensors", "loaders.py:arrays", "loaders.py:tensors"):
        data = load_data(str(tmp_path / form))
        assert torch.equal(data.inputs, expected.inputs)
        assert data.labels is not None
        assert torch.equal(data.labels, expected.labels)
    only = load_data(str(tmp_path / "loaders.py:inputs"))
    assert torch.equal(only.inputs, expected.inputs)
    assert only.labels is None


def test_a_limit_takes_samples_from_all_over_with_their_labels(tmp_path: Path) -> None:
    spec = npz(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    data, whole = load_data(spec, limit=4), load_data(spec)
    order = spread_order(6)[:4]
    assert torch.equal(data.inputs, whole.inputs[order])
    assert data.labels is not None
    assert data.labels.tolist() == LABELS[order].tolist()
    assert len(load_data(spec, limit=100)) == 6
    with pytest.raises(InputError, match="limit of samples is 0"):
        load_data(spec, limit=0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({}, {}, "it has none"),
        ({"images": PIXELS[:0]}, {}, "holds no samples"),
        ({"inputs": np.float32(3)}, {}, r"holds no samples: its inputs have shape \(\)"),
        ({"inputs": np.zeros(3)}, {}, "two axes or more, samples first"),
        ({"inputs": np.zeros((2, 0))}, {}, "holds no samples"),
        ({"images": PIXELS, "labels": LABELS[:4]}, {}, r"labels of shape \(4,\) for inputs of shape \(6, 5"),
        ({"images": PIXELS, "labels": np.zeros(())}, {}, r"labels of shape \(\)"),
        ({"images": PIXELS, "labels": LABELS / 2}, {}, "labels of type float64"),
        ({"images": PIXELS, "labels": LABELS - 1}, {}, "the label -1; classes are numbered from 0"),
        ({"images": PIXELS.astype(np.int64)}, {}, "images must be uint8"),
        ({"images": PIXELS.transpose(0, 3, 2, 1)}, {}, "the last axis must be 1, 3 or 4 channels"),
        ({"inputs": np.array([["a", "b"]])}, {}, "has type <U1"),
        ({"inputs": np.ones((2, 2), complex)}, {}, "has type complex128"),
        ({"inputs": np.ones((2, 2), bool)}, {}, "has type bool"),
        ({"inputs": np.array([[0, 1], [2, -3]])}, {}, "the token id -3"),
        (
            {"inputs": np.array([[0.0], [np.nan]])},
            {},
            "1 values that are NaN or infinite, the first in sample 1",
        ),
        ({"inputs": np.array([[np.inf, 1.0]])}, {}, "NaN or infinite, the first in sample 0"),
        ({"inputs": np.array([[1e300, 1.0]])}, {}, "NaN or infinite"),
        ({"inputs": np.array([[0, 1]])}, {"mean": [0.5]}, "holds token ids; leave mean and std out"),
        ({"images": PIXELS}, {"mean": [0.5, 0.5]}, "mean has 2 values; .* has 3 channels: give 3, or 1"),
        ({"images": PIXELS}, {"std": [1.0, 0.0, 1.0]}, "every value must be positive"),
        ({"images": PIXELS}, {"mean": [float("nan")]}, "every value must be finite"),
    ],
)
def test_arrays_that_cannot_be_data_are_refused(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    spec = npz(tmp_path / "a.npz", **arrays)
    # numpy warns of the overflow that is refused here.
    with np.errstate(over="ignore"), pytest.raises(InputError, match=message):
        load_data(spec, **options)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([object(), None]), allow_pickle=True)
    with pytest.raises(InputError, match="pickled objects, which are never loaded"):
        load_data(str(path))


def test_truncated_garbage_and_missing_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=PIXELS)
    whole, path = buffer.getvalue(), tmp_path / "a.npz"
    contents = [b"", b"garbage", whole[:-30], whole[: len(whole) // 2], whole[:80] + b"xxxx" + whole[84:]]
    for suffix in ("npz", "safetensors"):
        path = tmp_path / f"a.{suffix}"
        with pytest.raises(InputError, match="there is no file"):
            load_data(str(path))
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(InputError, match=f"cannot read {re.escape(str(path))}"):
                load_data(str(path))


def test_an_array_file_with_the_wrong_name_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(InputError, match="cannot read"):
        load_data(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1, 2, 3", "returned 3 things"),
        ("return 'images'", "returned as inputs is a str"),
        ("return torch.zeros(3, 2), [1, 2, 3]", "returned as labels is a list"),
        ("raise OSError('the disk is on fire')", r"failed: the disk is on fire \(at loaders.py, line 3"),
        ("return torch.zeros(0, 3)", "holds no samples"),
    ],
)
def test_a_loader_that_fails_or_returns_something_else_is_refused(
    tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "loaders.py").write_text(f"import torch\ndef load():\n    {body}\n")
    with pytest.raises(InputError, match=message):
        load_data(f"{tmp_path / 'loaders.py'}:load")


def test_what_is_no_data_is_refused_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a .npz, .safetensors, .zip or .txt file nor a loader"):
        load_data(str(tmp_path / "nothing.csv"))


def test_data_that_fits_the_network_passes(mixed_network: Network, images: torch.Tensor) -> None:
    check_data(mixed_network, Data(images, torch.arange(8) % 5, "images"))


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), None, r"a sample is \(3, 8, 8\) float32; the network takes \(3, 9, 9\)"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.int64), None, r"int64; the network takes \(3, 9, 9\) float32"),
        (torch.full((2, 3, 9, 9), 3e38), None, "output for sample 0 is NaN or infinite"),
        (torch.zeros(2, 3, 9, 9), torch.tensor([0, 5]), "greatest label is 5; the network has 5 classes"),
        (torch.zeros(2, 3, 9, 9), torch.zeros(2, 4).long(), r"they must be \(2,\)"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(
    mixed_network: Network, inputs: torch.Tensor, labels: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_data(mixed_network, Data(inputs, labels, "images"))


def test_an_output_of_one_class_is_refused() -> None:
    network = capture(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), torch.zeros(2, 4))
    with pytest.raises(InputError, match="two classes or more"):
        check_data(network, Data(torch.zeros(2, 4), None, "rows"))


def test_the_sample_that_is_not_finite_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    inputs = np.zeros((96, 2), np.float32)
    inputs[3, 1] = np.nan
    np.savez(tmp_path / "data.npz", inputs=inputs)
    for limit in (None, 96, 512):
        with pytest.raises(InputError, match=r"the first in sample 3 \(counted from 0\)"):
            load_data(str(tmp_path / "data.npz"), limit=limit)


def test_a_token_id_outside_the_table_is_found_in_any_sample() -> None:
    network = capture(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10)), torch.randint(0, 10, (2, 3)))
    ids = torch.zeros(5, 3, dtype=torch.int64)
    check_data(network, Data(ids, torch.zeros(5, 3, dtype=torch.int64), "ids"))
    ids[3, 1] = 10
    with pytest.raises(InputError, match="the network fails on sample 3: index out of range"):
        check_data(network, Data(ids, None, "ids"))


def test_the_sample_that_the_network_fails_on_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    network = capture(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10)), torch.randint(0, 10, (2, 3)))
    ids = np.zeros((96, 3), np.int64)
    ids[3, 1] = 10
    np.savez(tmp_path / "data.npz", inputs=ids)
    data = load_data(str(tmp_path / "data.npz"), limit=96)
    place = int(data.inputs.amax(dim=1).argmax())
    assert place != 3
    for part in (data, data.part(slice(place, None))):
        with pytest.raises(InputError, match="the network fails on sample 3: index out of range"):
            check_data(network, part)


def test_a_network_of_two_inputs_is_not_fed_by_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + y

    network = capture(Two(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(InputError, match="takes 2 inputs"):
        check_data(network, Data(torch.zeros(2, 4), None, "x"))
