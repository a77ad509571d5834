"""A folder of weights as Hugging Face lays it out: `config.json` and safetensors files, read and not run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from .reason import message_of

__all__ = ["Checkpoint", "Stored", "open_checkpoint"]

_CONFIG_BYTES, _INDEX_BYTES = 2**24, 2**28
_FILE = re.compile(r"[A-Za-z0-9_][\w.\-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is in a checkpoint.

    Attributes
    ----------
    key : str
        Its name in the files.
    part : tuple of slice or int
        What of that tensor is meant: all of it where empty, else an index such as one expert of many.
    """

    key: str
    part: tuple[slice | int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, none of them read yet.

    Attributes
    ----------
    folder : Path
    config : dict
        `config.json` as it is.
    files : dict
        File of every tensor, by the tensor's name.
    shapes, dtypes : dict
        As the files' headers state them.
    """

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        """Shape of a part of a tensor."""
        meta = torch.empty(self.shapes[stored.key], device="meta")
        return tuple(meta[stored.part].shape) if stored.part else tuple(meta.shape)

    def bits(self, stored: Stored) -> int:
        """Size of a part of a tensor as the checkpoint stores it."""
        return 8 * self.dtypes[stored.key].itemsize * math.prod(self.shape(stored))

    def read(self, stored: Stored) -> Tensor:
        """A tensor in float32, contiguous; no more of the file is read than that part.

        Raises
        ------
        InputError
            The file is damaged.
        """
        path = self.files[stored.key]
        try:
            with safe_open(path, framework="pt") as file:
                view = file.get_slice(stored.key)
                whole = view[stored.part] if stored.part else file.get_tensor(stored.key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot read '{stored.key}' in {path}: {message_of(error)}") from error
        return whole.to(torch.float32).contiguous()  # type: ignore[no-any-return]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the configuration and the headers of a folder; its tensors stay where they are.

    Weights are `model.safetensors`, or the files of `model.safetensors.index.json`. Nothing in the folder is
    run or unpickled.

    Raises
    ------
    InputError
        No such folder, no configuration, one that needs code of its own or is of a quantized network; no
        safetensors weights; an index that leaves the folder or does not fit its files; a file that is
        damaged or holds tensors that are not floats.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give hf: and a folder with config.json and weights")
    config = _json(folder / "config.json", _CONFIG_BYTES)
    if _has_code(config):
        raise InputError(
            f"{folder / 'config.json'} names Python code of its own (auto_map), which is never run; give a "
            "model that the transformers library has, or a factory: --model file.py:function"
        )
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{folder / 'config.json'} is of a network that is quantized already; give the float one"
        )
    files = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in sorted(set(files.values())):
        shapes |= _header(path, dtypes)
    lost = [name for name in files if name not in shapes]
    if lost:
        raise InputError(
            f"the index of {folder} says that '{lost[0]}' is in {files[lost[0]].name}, which does not have it"
        )
    return Checkpoint(folder, config, files, shapes, dtypes)


def _files(folder: Path) -> dict[str, Path]:
    """File of every tensor."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = _json(index, _INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{index} has no weight_map of tensors and files; download the folder again")
        for name, file in names.items():
            if not isinstance(file, str) or not _FILE.fullmatch(file):
                raise InputError(
                    f"{index} puts '{name}' into {file!r}; a file must be a .safetensors name in that folder"
                )
            if not (folder / file).is_file():
                raise InputError(f"{folder} lacks {file}, which its index names; download the folder again")
        return {name: folder / file for name, file in names.items()}
    if single.is_file():
        return dict.fromkeys(_names(single), single)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    reason = f"only {', '.join(pickles[:3])}, which could run code when loaded" if pickles else "no weights"
    raise InputError(
        f"{folder} has {reason}; it must have model.safetensors, or model.safetensors.index.json with its "
        "files: save the model with save_pretrained"
    )


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read weights {path}: {message_of(error)}") from error


def _header(path: Path, dtypes: dict[str, torch.dtype]) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors; their types are put into `dtypes`."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(name)
                kind = view.get_dtype()
                # Masks and counters that old versions stored; the program makes its own.
                if kind not in _TYPES and kind not in ("BOOL", "U8", "I64", "I32"):
                    raise InputError(
                        f"{path} holds '{name}' as {kind}; weights must be float64, float32, float16 or "
                        "bfloat16"
                    )
                shapes[name] = tuple(view.get_shape())
                dtypes[name] = _TYPES.get(kind, torch.int64)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read weights {path}: {message_of(error)}") from error
    return shapes


def _json(path: Path, most_bytes: int) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"there is no {path.name} in {path.parent}; give the folder that save_pretrained wrote"
        )
    if path.stat().st_size > most_bytes:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes; more than {most_bytes:,} are not read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is not JSON: {message_of(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; it must hold an object")
    return value


def _has_code(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(map(_has_code, value.values()))
    return isinstance(value, list) and any(map(_has_code, value))
