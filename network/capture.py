"""Capturing a module: torch.export once, and from there on only the graph and its tensors exist."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram

from ..errors import InputError
from .fold import fold_batch_norms, fold_transposes, prune
from .lower import lower, main_output
from .maps import gives_map
from .network import InputShape, Network, bits_of
from .program import stored_program
from .reason import quiet, reason_of
from .schedule import Schedule, tensors_in
from .tensors import STORED_TYPES
from .weights import check_values

__all__ = ["assemble", "capture", "capture_program", "check_finite", "export_module"]

# Two samples show which sizes follow the batch; one would be taken for a broadcast axis.
_SAMPLES = 2
# Under which `_Caller` holds the module.
_PREFIX = "module."


def capture(module: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Network:
    """Capture a module as a network, in evaluation mode, for any batch size.

    Batch norms are folded into the layers before them, dropout and checks are gone, and the module itself
    is no longer needed (the tensors are shared with it, not copied). The captured network is run once and
    compared with the module.

    Parameters
    ----------
    module : nn.Module
        Called with `inputs` as positional arguments. A dictionary, tuple or transformers output with
        `logits` counts as returning the logits.
    inputs : Tensor or tuple of Tensor
        A few samples, `(samples, ...)`, with the batch on the first axis of each; two are used.

    Raises
    ------
    InputError
        torch.export refuses the module (the message repeats its reason and the line), a parameter has no
        values or is not finite, nothing in the network can be quantized, the output is probabilities or its
        classes are not on its last axis, or network and module disagree.
    """
    samples = _two_samples(inputs)
    parameters = dict(module.named_parameters())
    check_finite({**dict(module.named_buffers()), **parameters}, parameters)
    caller = _Caller(module)
    with _evaluation(module), quiet(), torch.no_grad():
        try:
            # It may write into them.
            expected = caller(*(tensor.clone() for tensor in samples))
        except Exception as error:
            raise InputError(
                f"the model does not run on the given data, of shape {_shapes(samples)}: {reason_of(error)}"
            ) from error
        if expected.ndim < 2 or len(expected) != _SAMPLES:
            raise InputError(
                f"the model returns shape {tuple(expected.shape)} for {_SAMPLES} samples; "
                "it must return (samples, ..., classes)"
            )
        if not torch.isfinite(expected).all():
            raise InputError(
                "the model's output on the given data is NaN or infinite; check weights and data"
            )
        network = assemble(*lower(_export(caller, samples), _PREFIX), samples)
        _compare(network.run(samples), expected, "than the module; its forward is random or keeps state")
    return network


def export_module(module: nn.Module, samples: tuple[Tensor, ...]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph of a module and its tensors, by the module's own names; nothing is run or folded.

    Parameters
    ----------
    module : nn.Module
        Its parameters may be fake tensors, when the samples are of the same mode.
    samples : tuple of Tensor
        Two samples of every input.

    Raises
    ------
    InputError
        torch.export refuses the module.
    """
    with _evaluation(module), quiet(), torch.no_grad():
        return lower(_export(_Caller(module), samples), _PREFIX)


def _export(caller: _Caller, samples: tuple[Tensor, ...]) -> ExportedProgram:
    dynamic = ({0: Dim.DYNAMIC},) * len(samples)
    try:
        return torch.export.export(caller, samples, dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:
        reason = reason_of(error)
        if "Constraints violated" in reason:
            reason = f"its code fixes the number of samples: {reason}"
        raise InputError(
            f"torch.export cannot capture the model: {reason}; the forward must be a fixed sequence of "
            "tensor operations that accepts any number of samples"
        ) from error


def capture_program(program: ExportedProgram, inputs: Tensor | tuple[Tensor, ...]) -> Network:
    """Turn an exported program into a network; like `capture`, for a module exported before.

    Raises
    ------
    InputError
        As `capture`; also where the program was exported for one batch size only.
    """
    samples = _two_samples(inputs)
    check_finite({**program.state_dict, **program.constants}, program.graph_signature.parameters)
    try:
        with quiet(), torch.no_grad():
            network = assemble(*lower(program), samples)
            together = network.run(samples)
            apart = [network.run(tuple(tensor[i : i + 1] for tensor in samples)) for i in range(_SAMPLES)]
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the exported model does not run on one and on two samples of shape {_shapes(samples)}: "
            f"{reason_of(error)}; export it for this shape, with a dynamic first dimension"
        ) from error
    _compare(torch.cat(apart), together, "on samples one by one; export it with a dynamic first dimension")
    return network


class _Caller(nn.Module):
    """Calls the user's module and returns the one tensor that counts, so that only this is exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # A cache of keys and values would be a second output, of a type that export may not know.
        accepts_cache = "use_cache" in inspect.signature(module.forward).parameters
        self.options = {"use_cache": False} if accepts_cache else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        output = main_output(self.module(*inputs, **self.options))
        if output is None:
            raise InputError("it returns no floating-point tensor; return the logits")
        return output  # type: ignore[no-any-return]


def assemble(
    graph: fx.Graph,
    tensors: dict[str, Tensor],
    samples: tuple[Tensor, ...],
    stored_bits: Mapping[str, int] | None = None,
    mode: AbstractContextManager[object] | None = None,
) -> Network:
    """A network from a graph as `lower` leaves it: folded, pruned, and run once.

    Batch norms are folded only where tensors have values.

    Parameters
    ----------
    samples : tuple of Tensor
        Two samples of every input.
    stored_bits : mapping, optional
        What tensors weigh in the file they came from, by name, where that is not what they weigh in memory.
    mode : context manager, optional
        Under which the program runs, for tensors without values.

    Raises
    ------
    InputError
        Nothing in it can be quantized, a tensor is not finite, the output is probabilities or a map, see
        `gives_map`, or something in it cannot be stored.
    """
    _check_types(tensors)
    fold_transposes(graph, tensors)
    if mode is None:
        fold_batch_norms(graph, tensors)
    tensors = prune(graph, tensors)
    with mode or nullcontext():
        output = _count_elements(graph, tensors, samples)
    if mode is None:
        _check_logits(output)
    if gives_map(graph):
        raise InputError(
            "the model returns maps, (samples, classes, *places), straight from a convolution or "
            "interpolation; the classes must be on the last axis: return output.movedim(1, -1)"
        )
    shapes = tuple(InputShape(tuple(x.shape[1:]), x.dtype) for x in samples)
    stored = stored_bits or {}
    float_bits = sum(stored.get(name, bits_of([tensor])) for name, tensor in tensors.items())
    network = Network(graph, tensors, shapes, float_bits)
    if not network.layers:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(network.skipped.items())[:3])
        raise InputError(
            "the model has no layer to quantize: no convolution, linear or matmul with a stored weight"
            + (f" ({found})" if found else "")
        )
    # Refuses what could not be stored later, before any work is done.
    stored_program(network)
    # Folding divides by the variance, so a broken batch norm shows only now.
    check_finite(tensors, {layer.weight for layer in network.layers})
    return network


def _count_elements(graph: fx.Graph, tensors: Mapping[str, Tensor], samples: tuple[Tensor, ...]) -> Tensor:
    """Run once, and note on each node how many elements its result has for one sample; returns the output."""
    schedule = Schedule(graph, {})
    values = schedule.start(samples)
    # What depends on no input is computed once for all samples.
    per_sample = set(graph.find_nodes(op="placeholder"))
    with torch.inference_mode():
        operations = (node for node in graph.nodes if node.op == "call_function")
        for index, node in enumerate(operations):
            schedule.advance(values, tensors, index, index + 1)
            per_sample.update([node] if per_sample.intersection(node.all_input_nodes) else [])
            results = tensors_in(values.get(node.name))
            if results:
                elements = sum(tensor.numel() for tensor in results)
                node.meta["elements"] = elements // _SAMPLES if node in per_sample else elements
    output: Tensor = values[schedule.output]
    return output


def _check_logits(output: Tensor) -> None:
    """Refuse probabilities: of these the loss would take the softmax again, and find next to no change."""
    tolerance = max(1e-4, torch.finfo(output.dtype).eps)
    sums = output.double().sum(-1)
    if bool((output >= 0).all()) and bool(((sums - 1).abs() <= tolerance).all()):
        raise InputError(
            "the model returns probabilities, which are never negative and add up to 1 for every sample; "
            "what quantizing costs is the change of those that a softmax makes of the output, so return the "
            "logits, without softmax, or log_softmax in its place"
        )


def _compare(given: Tensor, expected: Tensor, where: str) -> None:
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    if given.shape != expected.shape:
        problem = f"shape {tuple(given.shape)}, not {tuple(expected.shape)}"
    else:
        scale = expected.double().norm().clamp_min(1e-30)
        difference = float((given.double() - expected.double()).norm() / scale)
        if difference <= tolerance:
            return
        problem = f"relative difference {difference:.1e}"
    raise InputError(f"the captured model gives other outputs {where} ({problem})")


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_TYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in STORED_TYPES)
            raise InputError(
                f"tensor '{name}' is of type {str(tensor.dtype).removeprefix('torch.')}, which cannot be "
                f"stored; give it one of {known}"
            )


def check_finite(tensors: Mapping[str, Tensor], parameters: Collection[str]) -> None:
    """Refuse tensors without values, parameters that are not finite, and other tensors that have NaN.

    Raises
    ------
    InputError
        Names the tensor.
    """
    check_values(tensors)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or isinstance(tensor, FakeTensor):
            continue
        if tensor.dtype not in STORED_TYPES:
            # Refused where the program reads it.
            continue
        # Masks and tables may hold infinities on purpose; parameters never do.
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if bad.any():
            raise InputError(
                f"tensor '{name}' has {int(bad.sum()):,} values of {tensor.numel():,} that are NaN or "
                "infinite; load weights that are finite"
            )


def _two_samples(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for tensor in given:
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise InputError(f"an example input of shape {tuple(tensor.shape)} holds no sample; give one")
    return tuple(
        torch.cat([tensor, tensor])[:_SAMPLES] if len(tensor) < _SAMPLES else tensor[:_SAMPLES]
        for tensor in given
    )


def _shapes(samples: tuple[Tensor, ...]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in samples)


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and attention written out in operators rather than fused; both restored after."""
    modes = [(part, part.training) for part in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, training in modes:
            part.training = training
