"""A finished run as one ONNX file that is checked, run and compared before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..documents import replace_file
from ..errors import InputError
from ..network import Network, load_program, with_explicit_activations
from ..reconstruct import value_tensors
from .extras import need_onnx
from .network import PROGRAM, read_run
from .onnx_builder import Builder
from .onnx_graph import OPSET, example_inputs, open_graph, simpler_inputs
from .onnx_kernels import MICROSOFT, use_integer_kernels
from .onnx_values import with_value_operators
from .onnx_weights import weight_nodes
from .packed import PackedNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["LayerSize", "OnnxExport", "export_onnx"]

IR_VERSION = 13
"""The first with 2-bit integers."""
TOLERANCES = {"float": 1e-3, "values": 0.2, "integer": 0.5}
HALF_TOLERANCE = 5e-2
"""Relative difference to PyTorch, far above what two orders of summation, or inputs of 8 bits, make. Where
values have few bits, a difference in the last digit can turn a code into its neighbour, which shows."""


@dataclass(frozen=True)
class LayerSize:
    """What a layer weighs in the plan and in the file.

    Attributes
    ----------
    name : str
    planned_bits, stored_bits : int
        Codes, steps and what says which channel has which option.
    notes : tuple of str
        Why the file has more than the plan.
    """

    name: str
    planned_bits: int
    stored_bits: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes
    ----------
    path : Path
    file_bytes, planned_bytes : int
        The whole file, and the whole network by its plan.
    graph_bytes : int
        Of the file, what is neither weight nor other tensor: nodes, names and shapes.
    layers : tuple of LayerSize
    difference : float or None
        Largest difference between the outputs of onnxruntime and of PyTorch, on two made-up samples. None
        where PyTorch itself fails on all that were tried, or gives NaN, so that nothing was compared.
    relative_difference : float or None
        The same as a share of the greatest number, either sign, of PyTorch's output.
    """

    path: Path
    file_bytes: int
    planned_bytes: int
    graph_bytes: int
    layers: tuple[LayerSize, ...]
    difference: float | None
    relative_difference: float | None


def export_onnx(
    run: str | Path, path: str | Path, *, kernels: Literal["float", "integer"] = "float"
) -> OnnxExport:
    """Write the quantized network of a run folder as an ONNX file for any batch size.

    Weights are integers of 2, 4 or 8 bits (opset 25) that DequantizeLinear nodes bring to floats; see
    `weight_nodes`. Values that the plan stores in low bits pass through QuantizeLinear and DequantizeLinear,
    with codes of 8 bits. Inputs have the names of the program's, the output is called ``output``.

    Parameters
    ----------
    run : str or Path
        Folder with ``weights.safetensors`` and ``program.json``.
    path : str or Path
        The file, replaced where it exists.
    kernels : "float" or "integer"
        integer: linear layers are multiplied by onnxruntime's own low-bit kernels, see `use_integer_kernels`.
        These round their inputs to 8 bits, so the output is near PyTorch's, not the same.

    Examples
    --------
    >>> apportion.export_onnx("run", "net.onnx").file_bytes  # doctest: +SKIP

    Raises
    ------
    InputError
        A file of the run is missing or damaged, PyTorch cannot export the network, the packages are not
        installed, onnxruntime cannot run it or computes something else than PyTorch, or the file cannot be
        written.
    """
    need_onnx()
    packed = read_run(run)
    network = load_program(Path(run) / PROGRAM, packed.tensors())
    stored = {layer.name: layer for layer in packed.finalized.layers}
    network = network.without(
        [layer.name for layer in network.layers if layer.name not in stored], "not in the plan"
    )
    values = value_tensors(packed.finalized.values)
    model = open_graph(with_value_operators(network, values))
    expected = with_explicit_activations(network, values)
    layers = {layer.weight: (layer, stored[layer.name]) for layer in network.layers}
    weights = use_integer_kernels(model, layers) if kernels == "integer" else {}
    for index, (name, (layer, kept)) in enumerate(layers.items()):
        if name not in weights:
            dtype = network.weight(layer).dtype
            weights[name] = weight_nodes(layer, kept, prefix=f"w{index}", dtype=dtype)
    model = filled(model, weights)
    content = serialized(model)
    tolerance = TOLERANCES["values" if values and kernels == "float" else kernels]
    differences = _compare(content, expected, tolerance)
    with replace_file(Path(path)) as temporary:
        temporary.write_bytes(content)
    return _account(Path(path), content, model, packed, weights, differences)


def filled(model: ModelProto, weights: Mapping[str, Builder]) -> ModelProto:
    """The model with nodes, by the name of the value that they give, in place of open inputs."""
    from onnx import helper

    given = [value for value in model.graph.input if value.name not in weights]
    graph = helper.make_graph(
        [*(node for builder in weights.values() for node in builder.nodes), *model.graph.node],
        "apportion",
        given,
        model.graph.output,
        [*(tensor for builder in weights.values() for tensor in builder.tensors), *model.graph.initializer],
    )
    versions = {given.domain: given.version for given in model.opset_import} | {"": OPSET, MICROSOFT: 1}
    return helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in versions.items()],
        producer_name="apportion",
        functions=model.functions,
    )


def serialized(model: ModelProto) -> bytes:
    """The bytes of a model that passes `onnx.checker` with all shapes inferred.

    Raises
    ------
    InputError
        It has more than 2 GiB, which one ONNX file cannot hold, or the checker refuses it.
    """
    from onnx import checker, shape_inference

    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:
        raise InputError(
            "the network takes more than 2 GiB in ONNX, which one file cannot hold; use --format safetensors"
        ) from error
    try:
        checker.check_model(content, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise InputError(
            f"PyTorch exports this network to what is no valid ONNX: {_first_line(error)}; use --format "
            "safetensors, which takes any network"
        ) from error
    return content


def session_outputs(content: bytes, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    """What onnxruntime computes on the CPU with all its default optimizations."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    output: NDArray[np.float32] = session.run(
        None, {name: given.numpy() for name, given in zip(names, inputs, strict=True)}
    )[0]
    return output


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _compare(content: bytes, network: Network, tolerance: float) -> tuple[float, float] | tuple[None, None]:
    """The largest difference, and what share of the greatest output it is."""
    answered = _answered(network)
    if answered is None:
        return None, None
    inputs, expected = answered
    try:
        found = session_outputs(content, inputs)
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the exported network: {_first_line(error)}") from error
    if any(tensor.dtype == torch.float16 for tensor in network.tensors.values()):
        tolerance = max(tolerance, HALF_TOLERANCE)
    difference = np.abs(found - expected).max()
    scale = max(float(np.abs(expected).max()), 1e-30)
    if not difference <= tolerance * scale:
        raise InputError(
            f"onnxruntime's output differs from PyTorch's by {difference:.2g} where the largest is "
            f"{scale:.2g}; nothing was written. Another version of onnxruntime may compute it rightly"
        )
    return float(difference), float(difference) / scale


def _answered(network: Network) -> tuple[tuple[Tensor, ...], NDArray[np.float32]] | None:
    """Inputs, and what PyTorch makes of them; None where it fails on all, or makes NaN."""
    examples = example_inputs(network, 2)
    for inputs in (examples, *simpler_inputs(examples)):
        try:
            with torch.inference_mode():
                output = network.run(inputs).float()
        except (RuntimeError, IndexError, ValueError):
            continue
        if output.isfinite().all():
            return inputs, output.numpy()
    return None


def _account(
    path: Path,
    content: bytes,
    model: ModelProto,
    packed: PackedNetwork,
    weights: Mapping[str, Builder],
    differences: tuple[float, float] | tuple[None, None],
) -> OnnxExport:
    data_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    planned = {layer.name: layer.size_bits for layer in packed.plan.layers}
    return OnnxExport(
        path=path,
        file_bytes=len(content),
        planned_bytes=-(-packed.plan.complexity.size_bits // 8),
        graph_bytes=len(content) - data_bytes,
        layers=tuple(
            LayerSize(builder.name, planned[builder.name], builder.stored_bits, tuple(builder.notes))
            for builder in weights.values()
        ),
        difference=differences[0],
        relative_difference=differences[1],
    )
