"""Image files in a folder or a zip archive, as uint8 arrays."""

from __future__ import annotations

import io
import zipfile
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import InputError
from .arrays import Array
from .order import spread_order
from .reason import message_of

__all__ = ["read_images"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_images(path: Path, limit: int | None) -> tuple[Array, Array | None]:
    """Read all images of a folder (and the folders in it) or of a zip archive.

    Parameters
    ----------
    path : Path
    limit : int or None
        At most this many images, the first of the `spread_order` of their sorted names; None: all, sorted.

    Returns
    -------
    images : uint8 `(samples, height, width, channels)`
        One channel where every image is grey, else three.
    labels : int64 `(samples,)` or None
        Positions of the images' folders in sorted order; None where all images are in one folder.

    Raises
    ------
    InputError
        No images, unreadable ones, numbers of more than 8 bits, images of different sizes, or Pillow is not
        installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(f"reading images takes Pillow: pip install 'apportion[images]' ({path})") from error
    try:
        archive = zipfile.ZipFile(path) if path.is_file() else None
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"cannot read {path}: {message_of(error)}; give a .zip archive of images") from error
    if archive is None and not path.is_dir():
        raise InputError(f"there is no file {path}")
    with archive or nullcontext():
        names = sorted(filter(_is_image, archive.namelist() if archive else _files(path)))
        if not names:
            raise InputError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
        folders = sorted({str(PurePosixPath(name).parent) for name in names})
        order = range(len(names)) if limit is None else spread_order(len(names))[:limit]
        chosen = [names[place] for place in order]
        images: list[Array] = []
        grey = True
        for name in chosen:
            try:
                content = archive.read(name) if archive else (path / name).read_bytes()
                with Image.open(io.BytesIO(content)) as image:
                    if image.mode == "F" or image.mode.startswith("I"):
                        raise InputError(
                            f"image {name} of {path} has numbers of more than 8 bits (mode {image.mode}); "
                            "save it with 8 bits a channel, or give arrays of floats in a .npz file"
                        )
                    grey = grey and image.mode in ("1", "L")
                    images.append(np.asarray(image.convert("RGB")))
            except InputError:
                raise
            except (
                UnidentifiedImageError,
                Image.DecompressionBombError,
                zipfile.BadZipFile,
                OSError,
                ValueError,
                SyntaxError,
            ) as error:
                raise InputError(f"cannot read image {name} of {path}: {message_of(error)}") from error
            if images[-1].shape != images[0].shape:
                raise InputError(
                    f"{path}: image {name} is {_size(images[-1])} pixels, {chosen[0]} is {_size(images[0])}; "
                    "resize all to the size the network takes"
                )
    labels = np.array([folders.index(str(PurePosixPath(name).parent)) for name in chosen])
    stacked = np.stack(images)
    return stacked[..., :1] if grey else stacked, labels if len(folders) > 1 else None


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # Some systems leave companions of the same name in hidden files and folders.
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


def _size(image: Array) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
