"""The packed file: integer codes at their true width, steps in 16 bits, the float rest, and the plan.

A safetensors file. For a layer L (by name):

    L/strips              option code of every strip (or tile of channels), packed; only where strips differ
    L/<option>/<i>/codes  codes of point i of the strips that have the option, packed, row after row
    L/<option>/<i>/steps  half-precision steps (rows, groups), to be scaled by a power of two
    =<tensor name>        a tensor that is not quantized, as it is

A strip is an output channel, which is one row, unless the plan cuts the layer otherwise, see `LayerCut`.

The metadata has an entry `apportion`, a JSON document with the format version, the plan, how each layer's
weight is named and laid out in the program, the exponents of the steps, and a checksum of every tensor; and
`apportion-crc32`, a checksum of that document. Metadata, tensor names and offsets are the file's header;
everything behind it is counted in the plan's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..allocator import LayerPlan, Plan, assignment_digest, parse_unit
from ..documents import parse_document, replace_file
from ..errors import InputError
from ..network import Network, StreamedTensors
from ..quantizer import (
    Option,
    QuantizedRows,
    StepUnit,
    channel_code_bits,
    codes_of,
    pack_codes,
    parse_option,
    steps_from_half,
    steps_to_half,
    unpack_codes,
)
from ..reconstruct import Finalized, LayersOnDemand, StoredLayer, StoredPart, plan_values, with_values
from .writer import TensorWriter, tensor_checksum

__all__ = ["PackedNetwork", "read_packed", "write_packed"]

ENTRY, CHECK = "apportion", "apportion-crc32"
# Codes have at least one bit.
MOST_WEIGHTS_PER_BYTE = 8
DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


class Layout(BaseModel):
    """How the program names and lays out a layer's weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    transposed: bool
    dtype: Literal["torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"]


class Header(BaseModel):
    """What the metadata holds beside safetensors' own names, types and offsets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["apportion-packed-2"] = "apportion-packed-2"
    plan: Plan
    made_for: str
    layouts: dict[str, Layout]
    exponents: dict[str, Annotated[int, Field(ge=-200, le=200)]]
    checksums: dict[str, Annotated[int, Field(ge=0, lt=2**32)]]


@dataclass(frozen=True)
class PackedNetwork:
    """What a packed file holds.

    Attributes
    ----------
    plan : Plan
        With the ranges of values as the method found them.
    made_for : str
        `assignment_digest` of the plan that weights were computed for, which has the calibrated ranges.
    finalized : Finalized
        Codes and steps of every layer.
    layouts : dict of str to Layout
        By layer name.
    rest : dict of str to Tensor
        The tensors that are not quantized.
    memory_bytes : int
        What dequantized weights that are kept may weigh together, where layers are read when asked for.
    """

    plan: Plan
    made_for: str
    finalized: Finalized
    layouts: dict[str, Layout]
    rest: dict[str, Tensor]
    memory_bytes: int = 0

    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor that the program reads, weights dequantized; as they are asked for if layers are."""
        place = {self.layouts[layer.name].tensor: at for at, layer in enumerate(self.plan.layers)}

        def dequantized(name: str) -> Tensor:
            return self._weight(place[name]) if name in place else self.rest[name]

        if not isinstance(self.finalized.layers, LayersOnDemand):
            return self.rest | {name: dequantized(name) for name in place}
        known = dict(self.rest)
        for name, at in place.items():
            layer = self.plan.layers[at]
            layout = self.layouts[layer.name]
            shape = tuple(reversed(layer.shape)) if layout.transposed else layer.shape
            known[name] = torch.empty(shape, dtype=DTYPES[layout.dtype], device="meta")
        return StreamedTensors(known, dequantized, torch.device("cpu"), self.memory_bytes)

    def _weight(self, at: int) -> Tensor:
        planned = self.plan.layers[at]
        layout = self.layouts[planned.name]
        weight = self.finalized.layers[at].dequantize().to(DTYPES[layout.dtype])
        return (weight.t() if layout.transposed else weight.reshape(planned.shape)).contiguous()


def write_packed(path: Path, network: Network, plan: Plan, finalized: Finalized) -> None:
    """Write the packed file in one step, layer by layer.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    layouts = {
        layer.name: Layout.model_validate(
            {
                "tensor": layer.weight,
                "transposed": layer.transposed,
                "dtype": str(network.outlines[layer.weight].dtype),
            }
        )
        for layer in network.layers
    }
    exponents: dict[str, int] = {}
    planned = {layer.name: layer for layer in plan.layers}
    quantized = {layer.weight for layer in network.layers}
    with replace_file(path) as temporary, TensorWriter(path.parent) as writer:
        for stored in finalized.layers:
            if len(stored.parts) > 1:
                writer.add(f"{stored.name}/strips", _pack_strips(plan, planned[stored.name]))
            for part in stored.parts:
                for index in range(part.rows.option.points):
                    prefix = f"{stored.name}/{part.rows.option}/{index}"
                    steps, exponents[prefix] = steps_to_half(part.rows.steps[index].cpu())
                    writer.add(f"{prefix}/codes", pack_codes(part.rows.codes[index], part.rows.option.bits))
                    writer.add(f"{prefix}/steps", steps)
        for name in network.tensors:
            if name not in quantized:
                bias = finalized.biases.get(name)
                writer.add(f"={name}", network.tensors[name] if bias is None else bias)
        header = Header(
            plan=with_values(plan, finalized.values),
            made_for=assignment_digest(plan.layers, plan.activations),
            layouts=layouts,
            exponents=exponents,
            checksums=writer.checksums,
        )
        text = header.model_dump_json(exclude_none=True)
        writer.write(temporary, {ENTRY: text, CHECK: _text_checksum(text)})


def read_packed(path: Path, *, memory_bytes: int | None = None) -> PackedNetwork:
    """Read a packed file; the integer codes and steps are bit for bit those written.

    Parameters
    ----------
    memory_bytes : int, optional
        Where the weights as floats are larger, layers stay in the file and are read, and checked, as they are
        asked for, and no more of them than this are kept; default: no bound.

    Raises
    ------
    InputError
        Not a packed file, of another version, truncated, changed since it was written, or not what its own
        plan says.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file, path)
            weights = sum(prod(layer.shape) for layer in header.plan.layers)
            bound = 4 * weights if memory_bytes is None else memory_bytes
            on_demand = 4 * weights > bound
            tensors = _tensors(file, header, path, "=" if on_demand else "")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read packed weights {path}: {error}") from error
    plan = header.plan
    values = plan_values(plan)
    rest = {name[1:]: tensor for name, tensor in tensors.items() if name.startswith("=")}
    if on_demand:
        layers = LayersOnDemand(
            [layer.name for layer in plan.layers], lambda at: _layer_of(path, plan.layers[at], header)
        )
        return PackedNetwork(
            plan, header.made_for, Finalized(layers, values=values), header.layouts, rest, bound
        )
    with _as_planned(path):
        _check_counts(plan.layers, sum(tensor.nbytes for tensor in tensors.values()))
        whole = tuple(_read_layer(layer, tensors, header.exponents) for layer in plan.layers)
    return PackedNetwork(plan, header.made_for, Finalized(whole, values=values), header.layouts, rest)


def _header(file: Any, path: Path) -> Header:
    metadata = file.metadata() or {}
    if ENTRY not in metadata:
        raise InputError(f"{path} is not a packed network; give one written by `allocate finalize`")
    if CHECK not in metadata:
        raise InputError(
            f"{path} was written by another version of apportion: its header has no checksum; run `allocate "
            "finalize --force` with this one"
        )
    if metadata[CHECK] != _text_checksum(metadata[ENTRY]):
        raise _damaged(path, "its header is not what was written")
    header = parse_document(metadata[ENTRY], Header, f"the header of {path}")
    with _as_planned(path):
        if set(header.layouts) != {layer.name for layer in header.plan.layers}:
            raise InputError("its layouts and its plan name different layers")
    return header


def _tensors(file: Any, header: Header, path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, as they were written."""
    found = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    for name, tensor in found.items():
        if tensor_checksum(tensor) != header.checksums.get(name):
            raise _damaged(path, f"'{name}' is not what was written")
    for name in header.checksums:
        if name.startswith(prefix) and name not in found:
            raise _damaged(path, f"'{name}' is missing")
    return found


def _damaged(path: Path, how: str) -> InputError:
    return InputError(f"{path} is damaged: {how}; copy the file anew or run `allocate finalize --force`")


def _text_checksum(text: str) -> str:
    return str(zlib.crc32(text.encode()))


@contextmanager
def _as_planned(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside means that the file does not fit its own plan."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold what its plan says: {error}") from error


def _layer_of(path: Path, layer: LayerPlan, header: Header) -> StoredLayer:
    """One layer of a file that is read layer by layer."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = _tensors(file, header, path, f"{layer.name}/")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read packed weights {path}: {error}") from error
    with _as_planned(path):
        _check_counts([layer], sum(tensor.nbytes for tensor in tensors.values()))
        return _read_layer(layer, tensors, header.exponents)


def _pack_strips(plan: Plan, layer: LayerPlan) -> Tensor:
    chosen = layer.strip_options()[:: parse_unit(plan.unit).tile]
    bits = channel_code_bits(len(plan.options))
    codes = torch.tensor(codes_of(bits), dtype=torch.int8)
    return pack_codes(codes[[plan.options.index(option) for option in chosen]], bits)


def _check_counts(layers: Sequence[LayerPlan], stored_bytes: int) -> None:
    """Refuse counts that the file cannot hold before anything as large as they say is made."""
    for layer in layers:
        if prod(layer.shape) > MOST_WEIGHTS_PER_BYTE * stored_bytes:
            raise InputError(
                f"layer '{layer.name}' has shape {list(layer.shape)}, more weights than the "
                f"{stored_bytes:,} bytes stored can hold"
            )


def _check_steps(steps: Tensor, option: Option, rows: int, row_weights: int, name: str) -> None:
    step_rows = 1 if option.unit is StepUnit.TENSOR else rows
    shape = (step_rows, option.step_count(rows, row_weights) // step_rows)
    if steps.dtype != torch.float16 or tuple(steps.shape) != shape:
        raise InputError(
            f"{name} is {str(steps.dtype).removeprefix('torch.')} of shape {tuple(steps.shape)}; the plan "
            f"needs float16 of shape {shape}"
        )
    if not bool(torch.isfinite(steps).all()):
        raise InputError(f"{name} holds a step that is NaN or infinite")


def _read_layer(layer: LayerPlan, tensors: dict[str, Tensor], exponents: dict[str, int]) -> StoredLayer:
    chosen, cut = layer.strip_options(), layer.layer_cut()
    parts = []
    for text in dict.fromkeys(chosen):
        option = parse_option(text)
        strips = [index for index, other in enumerate(chosen) if other == text]
        index = torch.tensor(cut.strip_rows(strips))
        codes, steps = [], []
        for point in range(option.points):
            prefix = f"{layer.name}/{text}/{point}"
            flat = unpack_codes(tensors[f"{prefix}/codes"], option.bits, len(index) * cut.row_weights)
            half = tensors[f"{prefix}/steps"]
            _check_steps(half, option, len(index), cut.row_weights, f"{prefix}/steps")
            codes.append(flat.view(len(index), cut.row_weights))
            steps.append(steps_from_half(half, exponents[prefix]))
        parts.append(StoredPart(index, QuantizedRows(option, torch.stack(codes), torch.stack(steps))))
    return StoredLayer(layer.name, tuple(parts), cut)
