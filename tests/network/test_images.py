"""Folders and archives of images."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.errors import InputError
from apportion.network import load_data, spread_order

Image = pytest.importorskip("PIL.Image")


def draw(path: Path, shade: int, *, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 255)).save(path)


def pack(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two folders, and files that are none."""
    root = tmp_path / "images"
    for index in range(10):
        draw(root / ("cats" if index < 6 else "dogs") / f"{index:02}.png", 10 * index)
    (root / "readme.txt").write_text("no image")
    draw(root / "dogs" / ".hidden.png", 255)
    return root


def test_a_folder_and_its_archive_are_the_same_data_with_labels_from_folders(folder: Path) -> None:
    for path in (folder, pack(folder)):
        data = load_data(str(path))
        assert data.inputs.shape == (10, 3, 3, 4)
        np.testing.assert_array_equal((data.inputs[:, 0, 0, 0] * 255).round().numpy(), np.arange(10) * 10)
        assert (data.inputs[:, 2] == 1).all()
        assert data.labels is not None
        assert data.labels.tolist() == [0] * 6 + [1] * 4


def test_a_limit_takes_images_spread_over_all_so_that_all_folders_have_some(folder: Path) -> None:
    data = load_data(str(folder), limit=4)
    assert (data.inputs[:, 0, 0, 0] * 255).round().tolist() == [10 * place for place in spread_order(10)[:4]]
    assert data.labels is not None
    assert sorted(data.labels.tolist()) == [0, 0, 1, 1]
    # All of them are in that order too, and a smaller limit has the first of them.
    whole = load_data(str(folder), limit=100)
    assert torch.equal(whole.inputs[:4], data.inputs)
    assert len(whole) == 10


def test_images_in_one_folder_have_no_labels_and_mean_and_std_apply(folder: Path) -> None:
    data = load_data(str(folder / "cats"), mean=[0.0, 0.0, 1.0], std=[1.0, 1.0, 2.0])
    assert data.labels is None
    assert (data.inputs[:, 2] == 0).all()


def test_grey_images_have_one_channel_unless_some_are_coloured(tmp_path: Path) -> None:
    for index in range(2):
        draw(tmp_path / f"{index}.png", 50, mode="L")
    assert load_data(str(tmp_path)).inputs.shape == (2, 1, 3, 4)
    draw(tmp_path / "2.png", 50)
    assert load_data(str(tmp_path)).inputs.shape == (3, 3, 3, 4)


def test_images_of_several_sizes_are_refused_naming_two(folder: Path) -> None:
    draw(folder / "dogs" / "large.png", 0, size=(8, 8))
    with pytest.raises(InputError, match=r"image dogs/large.png is 8x8 pixels, cats/00.png is 4x3"):
        load_data(str(folder))


def test_images_that_are_damaged_are_refused(folder: Path) -> None:
    whole = (folder / "cats" / "03.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (folder / "cats" / "03.png").write_bytes(content)
        for path in (folder, pack(folder)):
            with pytest.raises(InputError, match=r"cannot read image cats/03.png"):
                load_data(str(path))


@pytest.mark.parametrize(("dtype", "name"), [("uint16", "b.png"), ("int32", "b.tif"), ("float32", "b.tif")])
def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path: Path, dtype: str, name: str) -> None:
    draw(tmp_path / "a.png", 50, mode="L")
    Image.fromarray(np.full((3, 4), 200).astype(dtype)).save(tmp_path / name)
    with pytest.raises(InputError, match=f"image {name} of .* has numbers of more than 8 bits"):
        load_data(str(tmp_path))


def test_folders_and_archives_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        load_data(str(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"give a .zip archive of images"):
        load_data(str(tmp_path / "a.zip"))
    with pytest.raises(InputError, match="there is no file"):
        load_data(str(tmp_path / "b.zip"))
