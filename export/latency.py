"""How long every layer takes under every option: one-layer ONNX graphs, timed in turn in onnxruntime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx

from ..errors import InputError
from ..network import InputShape, Layer, LayerCall, Network
from ..quantizer import Option, QuantizedRows, StepUnit, codes_of
from ..reconstruct import StoredLayer, StoredPart
from .extras import need_onnx
from .onnx_file import filled, serialized
from .onnx_graph import open_graph
from .onnx_kernels import use_integer_kernels
from .onnx_weights import weight_nodes

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["LayerLatency", "measure_latency"]

WARM_UP = 2


@dataclass(frozen=True)
class LayerLatency:
    """The time of one layer under one option, over all its uses for one sample.

    Attributes
    ----------
    layer, option : str
    median_ms : float
    spread_ms : float
        Between the quartiles of the repeats.
    """

    layer: str
    option: str
    median_ms: float
    spread_ms: float


def measure_latency(
    network: Network,
    inputs: Tensor | tuple[Tensor, ...],
    options: Sequence[Option],
    *,
    kernels: Literal["float", "integer"] = "float",
    repeats: int = 30,
    on_layer: Callable[[int, int], None] | None = None,
) -> list[LayerLatency]:
    """Time every layer under every option that fits it, as `export_onnx` writes it, on one thread.

    The layer alone, with the inputs that reach it for one sample. All options of a layer are run in turn,
    round after round, so that what else the machine does meets them alike. Layers that compute the same on
    inputs of the same shape are timed once.

    Parameters
    ----------
    inputs : Tensor or tuple of Tensor
        At least one sample; the first is used.
    kernels : "float" or "integer"
        See `export_onnx`.
    repeats : int
        Rounds, of which the median counts.
    on_layer : callable, optional
        Told (layers done, layers in all).

    Raises
    ------
    InputError
        The packages are not installed, or PyTorch cannot export a layer to ONNX.
    """
    need_onnx()
    given = (inputs,) if isinstance(inputs, Tensor) else inputs
    uses = _uses(network, tuple(tensor[:1] for tensor in given))
    known: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    found = []
    for done, layer in enumerate(network.layers, start=1):
        totals: dict[str, list[float]] = {}
        for node, entering in uses[layer.name]:
            key = _signature(network, layer, node, entering)
            if key not in known:
                known[key] = _seconds(network, layer, node, entering, options, kernels, repeats)
            for option, seconds in known[key].items():
                before = totals.get(option, [0.0] * repeats)
                totals[option] = [one + other for one, other in zip(before, seconds, strict=True)]
        for option, seconds in totals.items():
            low, middle, high = statistics.quantiles(seconds, n=4)
            found.append(LayerLatency(layer.name, option, 1e3 * middle, 1e3 * (high - low)))
        if on_layer is not None:
            on_layer(done, len(network.layers))
    return found


def _uses(network: Network, inputs: tuple[Tensor, ...]) -> Mapping[str, list[tuple[fx.Node, Tensor]]]:
    """Per layer, the nodes that apply it and what enters them."""
    nodes = {node.name: node for node in network.graph.nodes}
    uses: dict[str, list[tuple[fx.Node, Tensor]]] = {layer.name: [] for layer in network.layers}

    def keep(call: LayerCall, entering: Tensor, result: Tensor) -> Tensor:
        uses[call.layer.name].append((nodes[call.node], entering.detach().contiguous()))
        return result

    with torch.no_grad():
        network.run(inputs, on_layer=keep)
    return uses


def _signature(network: Network, layer: Layer, node: fx.Node, entering: Tensor) -> tuple[Any, ...]:
    """What the time of a layer depends on."""
    plain = fx.node.map_arg(
        (node.args, tuple(node.kwargs.items())), lambda other: "stored" if other.op == "get_attr" else "value"
    )
    shapes = [
        tuple(network.tensors[str(other.target)].shape)
        for other in node.all_input_nodes
        if other.op == "get_attr"
    ]
    return (str(node.target), repr(plain), tuple(entering.shape), str(entering.dtype), repr(shapes))


def _alone(network: Network, layer: Layer, node: fx.Node, entering: Tensor) -> Network:
    """A network of this one use of a layer."""
    graph = fx.Graph()
    source = graph.placeholder("entering")
    tensors: dict[str, Tensor] = {}

    def taken(other: fx.Node) -> fx.Node:
        if other.op != "get_attr":
            return source
        tensors[str(other.target)] = network.tensors[str(other.target)]
        return graph.create_node("get_attr", str(other.target))

    others = [other for other in node.all_input_nodes if other.op != "get_attr"]
    if len(others) != 1:
        raise InputError(
            f"layer '{layer.name}' reads {len(others)} computed values, and only one can be timed; leave it "
            "out with --exclude"
        )
    args = fx.node.map_arg(node.args, taken)
    kwargs = fx.node.map_arg(dict(node.kwargs), taken)
    applied = graph.create_node("call_function", node.target, args, kwargs)
    applied.meta["elements"] = node.meta["elements"]
    graph.output(applied)
    return Network(graph, tensors, (InputShape(tuple(entering.shape[1:]), entering.dtype),))


def _seconds(
    network: Network,
    layer: Layer,
    node: fx.Node,
    entering: Tensor,
    options: Sequence[Option],
    kernels: str,
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of every round, by option."""
    sessions = _sessions(_alone(network, layer, node, entering), options, kernels)
    values = {"entering": entering.numpy()}
    seconds: dict[str, list[float]] = {option: [] for option in sessions}
    for turn in range(repeats + WARM_UP):
        for option, session in sessions.items():
            began = time.perf_counter()
            session.run(None, values)
            if turn >= WARM_UP:
                seconds[option].append(time.perf_counter() - began)
    return seconds


def _sessions(
    alone: Network, options: Sequence[Option], kernels: str
) -> dict[str, onnxruntime.InferenceSession]:
    import onnxruntime

    (layer,) = alone.layers
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    content = open_graph(alone).SerializeToString()
    made = {}
    for option in options:
        if option.group > layer.fan_in:
            continue
        model, stored = _parsed(content), _any_weight(layer, option)
        weights = use_integer_kernels(model, {layer.weight: (layer, stored)}) if kernels == "integer" else {}
        if not weights:
            weights = {layer.weight: weight_nodes(layer, stored, prefix="w", dtype=alone.weight(layer).dtype)}
        made[str(option)] = onnxruntime.InferenceSession(
            serialized(filled(model, weights)), settings, providers=["CPUExecutionProvider"]
        )
    return made


def _parsed(content: bytes) -> Any:
    from onnx import ModelProto

    return ModelProto.FromString(content)


def _any_weight(layer: Layer, option: Option) -> StoredLayer:
    """Random codes: the time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    every = torch.tensor(codes_of(option.bits), dtype=torch.int8)
    shape = (option.points, layer.channels, layer.fan_in)
    codes = every[torch.randint(len(every), shape, generator=generator)]
    groups = -(-layer.fan_in // option.group) if option.group else 1
    channels = 1 if option.unit is StepUnit.TENSOR else layer.channels
    rows = QuantizedRows(option, codes, torch.full((option.points, channels, groups), 2.0**-8))
    return StoredLayer(layer.name, (StoredPart(torch.arange(layer.channels), rows),))
