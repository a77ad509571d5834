"""A network as an ONNX graph whose layers' weights are still open: inputs, to be computed by nodes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.export import Dim

from ..errors import InputError
from ..network import Network
from .onnx_values import translations

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OPSET", "example_inputs", "open_graph", "simpler_inputs"]

OPSET = 25
"""The first with 2-bit integers."""
BATCH = "batch"
# Two, because one sample would be taken for a broadcast axis.
_SAMPLES = 2
# Of a table that is compared with others: any.
_MOST_NUMBERS = 2**40


def open_graph(network: Network) -> ModelProto:
    """The network in ONNX, for any batch size, with the weight of every layer as a further input.

    Weights are inputs so that the exporter folds nothing into them: whatever computes a value of the name
    `Layer.weight`, in the layout of the network's tensor, can take an input's place. Everything else that
    the network reads is stored as it is.

    Returns
    -------
    ModelProto
        Inputs: those of the network, with the batch as first axis, then `Layer.weight` of every layer.

    Raises
    ------
    InputError
        The network computes in bfloat16, or something that PyTorch's exporter has no ONNX operators for.
    """
    from onnx_ir.passes.common import DeduplicateInitializersPass

    _check_types(network)
    weights = [layer.weight for layer in network.layers]
    inputs = example_inputs(network, _SAMPLES)
    module = _module(network, weights)
    dynamic = ({0: Dim.DYNAMIC},) * len(inputs) + (None,) * len(weights)
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                module,
                (*inputs, *(network.tensors[name] for name in weights)),
                dynamic_shapes=dynamic,
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=translations(),
            )
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise InputError(
                f"PyTorch cannot export this network to ONNX: {reason}; use --format safetensors, which "
                "takes any network"
            ) from error
    assert exported is not None
    # The exporter folds what it can, and with it copies of one table.
    DeduplicateInitializersPass(size_limit=_MOST_NUMBERS)(exported.model)
    model = exported.model_proto
    names = [*network.schedule.inputs, *weights]
    _rename(model, dict(zip((given.name for given in model.graph.input), names, strict=True)))
    return model


def example_inputs(network: Network, samples: int) -> tuple[Tensor, ...]:
    """Inputs that the network takes, always the same: normal numbers, or the token ids 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(samples, *given.shape, generator=generator).to(given.dtype)
        if given.dtype.is_floating_point
        else torch.randint(0, 2, (samples, *given.shape), generator=generator).to(given.dtype)
        for given in network.inputs
    )


def simpler_inputs(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of the same shapes for a network that does not take any number: from 0 to 1, zeros, and ones."""
    yield tuple(tensor.sigmoid() if tensor.is_floating_point() else tensor for tensor in inputs)
    yield tuple(map(torch.zeros_like, inputs))
    yield tuple(map(torch.ones_like, inputs))


def _check_types(network: Network) -> None:
    types = {given.dtype for given in network.inputs} | {tensor.dtype for tensor in network.tensors.values()}
    if torch.bfloat16 in types:
        raise InputError(
            "the network computes in bfloat16, which onnxruntime does not on a CPU; capture it in float32"
        )


def _module(network: Network, weights: list[str]) -> fx.GraphModule:
    """The program with placeholders, after its own, in place of the reads of `weights`."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    last = graph.find_nodes(op="placeholder")[-1]
    reads = graph.find_nodes(op="get_attr")
    with graph.inserting_after(last):
        # Each is put right behind the last of the program's own, so the last one comes first.
        for index, name in reversed(list(enumerate(weights))):
            given = graph.placeholder(f"layer_weight_{index}")
            for node in [node for node in reads if node.target == name]:
                node.replace_all_uses_with(given)
                graph.erase_node(node)
    return fx.GraphModule(network.graph_module, graph)


def _rename(model: ModelProto, names: dict[str, str]) -> None:
    """Give inputs their names, call the output `output` and the first axis of both `batch`."""
    graph = model.graph
    names = names | {graph.output[0].name: "output"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output]:
        value.name = names[value.name]
        axes = value.type.tensor_type.shape.dim
        if axes[0].dim_param:
            axes[0].dim_param = BATCH
    # Shapes within are found by whoever needs them, and would name the batch by torch's symbol.
    del graph.value_info[:]
    for element in [model, graph, *graph.node]:
        del element.metadata_props[:]
        element.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice about its own internals.

    Its optimizer warns of what it cannot compute ahead, such as BERT's look-up of token types, and leaves it.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript.optimizer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
