"""From what torch.export returns to a plain graph: pure operators, named tensors, one output."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import InputError
from .operators import is_arithmetic
from .reason import message_of

__all__ = ["lower", "main_output"]

aten = torch.ops.aten

# Checks made while tracing; they compute nothing, and some would tie the graph to one device or type.
_CHECKS = frozenset(
    {
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)
_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
# `detach` among them: the derivative of the output by a weight is wanted, also through detached values.
_IDENTITIES = frozenset({"alias", "detach", "lift_fresh", "lift_fresh_copy"})
# transformers' experts call an operator of their own where PyTorch has one with the same arguments.
_EQUIVALENTS = {"transformers::grouped_mm_fallback": aten._grouped_mm.default}


def lower(program: ExportedProgram, prefix: str = "") -> tuple[fx.Graph, dict[str, Tensor]]:
    """Turn an exported program into a graph of functional operators and the tensors it reads.

    In-place operators are made functional, checks and dropout are dropped, regions that only switch
    gradients off are inlined, tied tensors get one name, and the output is the single tensor that
    `main_output` picks.

    Parameters
    ----------
    program : ExportedProgram
    prefix : str
        Taken off the names of the tensors.

    Returns
    -------
    graph : torch.fx.Graph
        Placeholders for the tensor inputs, then `get_attr` nodes for the tensors, then operators.
    tensors : dict
        By qualified name, in the order of the program's state.

    Raises
    ------
    InputError
        The program is in training mode, or holds control flow or objects other than tensors.
    """
    for node in program.graph.nodes:
        _refuse_training(node)
    if any(_is_mutable(node) for node in _all_nodes(program)):
        try:
            program = program.run_decompositions({})
        except Exception as error:
            raise InputError(
                f"torch cannot write the model without in-place operations: {message_of(error)}; write its "
                "forward without them"
            ) from error
    graph = fx.Graph()
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    known: dict[fx.Node, Any] = {}
    states: dict[fx.Node, str] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        target, example = targets[node.name], node.meta.get("val")
        if target is not None:
            states[node] = target
        else:
            known[node] = graph.placeholder(node.name) if isinstance(example, Tensor) else example
    tensors = _read_states(program, states, prefix, known, graph)
    _copy(program.graph_module, program.graph, known, graph)
    graph.output(known[_output_node(program)])
    return graph, tensors


def main_output(value: Any) -> Any:
    """The tensor a model returns to its caller: `logits` where there is one, else the first floating one.

    `value` is what the model returned, with tensors or graph nodes in it; None where nothing qualifies.
    """
    if isinstance(value, Mapping) and "logits" in value:
        return value["logits"]
    if getattr(value, "logits", None) is not None:
        return value.logits
    for leaf in pytree.tree_leaves(value):
        tensor = leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            return leaf
    return None


def _read_states(
    program: ExportedProgram,
    states: Mapping[fx.Node, str],
    prefix: str,
    known: dict[fx.Node, Any],
    into: fx.Graph,
) -> dict[str, Tensor]:
    """Give each tensor of the program one `get_attr` node, also where it goes by several names."""
    stored = {**program.state_dict, **program.constants}
    tensors: dict[str, Tensor] = {}
    reads: dict[tuple[object, ...], fx.Node] = {}
    for node, target in states.items():
        value = stored.get(target)
        if not isinstance(value, Tensor):
            raise InputError(
                f"the model holds '{target}', a {type(value).__name__}; only tensors can be captured"
            )
        identity = _identity(value)
        if identity not in reads:
            name = target.removeprefix(prefix)
            tensors[name] = value.detach()
            reads[identity] = into.create_node("get_attr", name)
        known[node] = reads[identity]
    return tensors


def _output_node(program: ExportedProgram) -> fx.Node:
    signature = program.graph_signature
    by_name = {node.name: node for node in program.graph.nodes}
    leaves = [by_name.get(str(name)) for name in signature.user_outputs]
    output = main_output(pytree.tree_unflatten(leaves, program.call_spec.out_spec))
    if not isinstance(output, fx.Node):
        raise InputError("the model returns no floating-point tensor; return its logits")
    return output


def _all_nodes(program: ExportedProgram) -> Iterator[fx.Node]:
    """The nodes of the program and of the bodies of its nested regions."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _is_mutable(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    return _plain_name(node.target) not in _DROPOUTS | _IDENTITIES


def _plain_name(target: torch._ops.OpOverload) -> str:
    """`dropout` for `aten::dropout_`: the operator, in place or not; other namespaces keep their prefix."""
    return target._schema.name.removeprefix("aten::").removesuffix("_")


def _refuse_training(node: fx.Node) -> None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    name = _plain_name(node.target)
    if name in _DROPOUTS and node.args[2]:
        reason = "drops values at random"
    elif name == "batch_norm" and node.args[5]:
        reason = "normalises by the statistics of the batch"
    else:
        return
    raise InputError(
        f"the model {reason} (node {node.name}), so its output for a sample is not fixed; "
        "capture it in evaluation mode, with running statistics"
    )


def _identity(tensor: Tensor) -> tuple[object, ...]:
    # Not its address, which tensors without values do not have.
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _copy(module: torch.nn.Module, source: fx.Graph, known: dict[fx.Node, Any], into: fx.Graph) -> None:
    """Append the operators of `source` to `into`; `known` maps nodes of the one to nodes of the other."""
    for node in source.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            # Tensors are placeholders here; what is left as attributes are the bodies of nested regions.
            known[node] = getattr(module, str(node.target))
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            known[node] = _inline(str(node.target), args, into)
        elif node.target is operator.getitem and not isinstance(args[0], fx.Node):
            known[node] = args[0][args[1]]
        elif isinstance(node.target, torch._ops.OpOverload):
            known[node] = created = _operator(node.target, args, kwargs, node.name, into)
            if created is not None and isinstance(node.meta.get("val"), Tensor):
                created.meta["rank"] = node.meta["val"].ndim
        elif is_arithmetic(node.target):
            known[node] = into.create_node("call_function", node.target, args, kwargs, node.name)
        else:
            raise InputError(f"the model calls {node.target}, which is not an operator of PyTorch")


def _operator(
    target: torch._ops.OpOverload, args: Any, kwargs: Any, name: str, into: fx.Graph
) -> fx.Node | None:
    if _plain_name(target) in _CHECKS:
        return None
    if _plain_name(target) in _IDENTITIES | _DROPOUTS:
        return args[0]  # type: ignore[no-any-return]
    if target is aten.copy.default:
        # What an assignment to a part of a tensor becomes. It has no derivative; what it is made of has.
        place, given = args[:2]
        given = into.call_function(aten.type_as.default, (given, place))
        return into.create_node("call_function", aten.expand_as.default, (given, place), {}, name)
    target = _EQUIVALENTS.get(target._schema.name, target)
    return into.create_node("call_function", target, args, kwargs, name)


def _inline(name: str, args: Any, into: fx.Graph) -> tuple[Any, ...]:
    """Append the body of a region that runs with gradients or autocast switched on or off."""
    if name == "wrap_with_set_grad_enabled":
        body, operands = args[1], args[2:]
    elif name == "wrap_with_autocast" and not args[2]:
        body, operands = args[4], args[5:]
    else:
        raise InputError(
            f"the model uses {name}, which cannot be captured: control flow and autocast depend on how "
            "the program is run; write the forward without it"
        )
    known = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    _copy(body, body.graph, known, into)
    return tuple(fx.node.map_arg(body.graph.output_node().args[0], known.__getitem__))
