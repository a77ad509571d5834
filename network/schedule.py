"""A graph flattened into steps that run one after another and forget each value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx

from .activation import activation_entries, quantized
from .layer import LayerCall

__all__ = ["LayerHook", "Schedule", "Step", "ValueHook", "Values", "tensors_in", "values_read"]

Values: TypeAlias = dict[str, Any]
LayerHook: TypeAlias = Callable[[LayerCall, Tensor, Tensor], Tensor]
ValueHook: TypeAlias = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class _Value:
    """Stands in a step's arguments for the result of an earlier node."""

    name: str


@dataclass(frozen=True)
class _Stored:
    """Stands in a step's arguments for a tensor of the network."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation of the program.

    Attributes
    ----------
    name : str
        The graph node, under which the result is kept.
    target : callable
    args, kwargs
        Arguments, with placeholders for values and stored tensors.
    release : tuple of str
        Values that no later step reads.
    call : LayerCall or None
        Set where the operation applies a layer; `source` is then the name of the value that enters it.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    release: tuple[str, ...]
    call: LayerCall | None = None
    source: str | None = None


class Schedule:
    """The steps of a graph in execution order.

    Parameters
    ----------
    graph : torch.fx.Graph
        Placeholders, `get_attr` nodes that name tensors, functional calls, and one output tensor.
    calls : mapping from node name to (LayerCall, node name)
        The uses of layers, each with the node whose value is multiplied.

    Attributes
    ----------
    inputs, output : names of the values that go in and come out
    steps : list of Step
    position : dict
        Index of each node's step.
    first_read, last_read : dict
        Index of the first and of the last step that reads each stored tensor.
    """

    def __init__(self, graph: fx.Graph, calls: Mapping[str, tuple[LayerCall, str]]) -> None:
        self.inputs: tuple[str, ...] = tuple(node.name for node in graph.find_nodes(op="placeholder"))
        self.steps: list[Step] = []
        operations = [node for node in graph.nodes if node.op == "call_function"]
        self.output: str = str(graph.output_node().args[0])
        last_use: dict[str, str] = {}
        for node in operations:
            for source in node.all_input_nodes:
                last_use[source.name] = node.name
        releases: dict[str, list[str]] = {}
        for name, user in last_use.items():
            if name != self.output:
                releases.setdefault(user, []).append(name)
        for node in operations:
            # A result that nothing reads (the second output of a split) is forgotten at once.
            unread = [] if node.name in last_use or node.name == self.output else [node.name]
            call, source = calls.get(node.name, (None, None))
            self.steps.append(
                Step(
                    name=node.name,
                    target=node.target,
                    args=_template(node.args),
                    kwargs=_template(node.kwargs),
                    release=tuple(releases.get(node.name, [])) + tuple(unread),
                    call=call,
                    source=source,
                )
            )
        self.position = {step.name: index for index, step in enumerate(self.steps)}
        self.first_read: dict[str, int] = {}
        self.last_read: dict[str, int] = {}
        for node in operations:
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    self.first_read.setdefault(str(source.target), self.position[node.name])
                    self.last_read[str(source.target)] = self.position[node.name]

    def start(self, inputs: Sequence[Tensor]) -> Values:
        """The values before the first step."""
        return dict(zip(self.inputs, inputs, strict=True))

    def advance(
        self,
        values: Values,
        tensors: Mapping[str, Tensor],
        begin: int,
        end: int,
        on_layer: LayerHook | None = None,
        on_value: ValueHook | None = None,
    ) -> None:
        """Run steps `begin` to `end` (exclusive), adding results to `values` and dropping the spent ones.

        Values for which `tensors` has an entry, see `activation_key`, go on in low bits: results as they
        come, and inputs where the run begins.
        """
        entries = activation_entries(tensors)
        if begin == 0:
            for name in self.inputs:
                self._finish(values, name, entries, on_value)
        for step in self.steps[begin:end]:
            args = [_fill(argument, values, tensors) for argument in step.args]
            kwargs = {key: _fill(argument, values, tensors) for key, argument in step.kwargs.items()}
            result = step.target(*args, **kwargs)
            if on_layer is not None and step.call is not None and step.source is not None:
                result = on_layer(step.call, values[step.source], result)
            values[step.name] = result
            self._finish(values, step.name, entries, on_value)
            # Otherwise the loop itself would keep the last operation's inputs alive.
            del args, kwargs, result
            for name in step.release:
                values.pop(name, None)

    @staticmethod
    def _finish(values: Values, name: str, entries: Mapping[str, Tensor], on_value: ValueHook | None) -> None:
        if on_value is not None and isinstance(values[name], Tensor):
            values[name] = on_value(name, values[name])
        quantized(values, name, entries)


def _template(argument: Any) -> Any:
    def replace(node: fx.Node) -> Any:
        return _Stored(str(node.target)) if node.op == "get_attr" else _Value(node.name)

    return fx.node.map_arg(argument, replace)


def _fill(argument: Any, values: Values, tensors: Mapping[str, Tensor]) -> Any:
    kind = type(argument)
    if kind is _Value:
        return values[argument.name]
    if kind is _Stored:
        return tensors[argument.name]
    if isinstance(argument, (list, tuple)):
        return [_fill(part, values, tensors) for part in argument]
    return argument


def values_read(step: Step) -> tuple[str, ...]:
    """Names of the values that a step takes, each as often as it takes it."""
    found: list[str] = []
    waiting: list[Any] = [*step.args, *step.kwargs.values()]
    while waiting:
        argument = waiting.pop()
        if isinstance(argument, _Value):
            found.append(argument.name)
        elif isinstance(argument, (list, tuple)):
            waiting.extend(argument)
    return tuple(found)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a node's result: one, several (of a split), or none (of a size)."""
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return [part for part in parts if isinstance(part, Tensor)]
