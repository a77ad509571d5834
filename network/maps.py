"""Whether a network's output is a map, with its classes on the second axis and places on those after it."""

from __future__ import annotations

import operator
import re

import torch
from torch import fx

__all__ = ["gives_map"]

# Places are the last axes of what these compute.
_MAPPING = re.compile(r"aten::_?(conv|upsample|slow_conv|thnn_conv)\w*")
# Beside pointwise operators these leave the order of axes as it is.
_KEEPING = re.compile(
    r"aten::\w*(batch_norm|instance_norm|group_norm|softmax|pool\dd|pad\w*|pixel_shuffle)\w*"
    r"|aten::(cat|contiguous|hardswish|prelu|slice|narrow|to|_to_copy)"
)


def gives_map(graph: fx.Graph) -> bool:
    """Whether the output comes from convolutions or interpolations with no change of axes after them."""
    waiting = [graph.output_node().args[0]]
    seen: set[object] = set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if node.target is operator.getitem:
            waiting.append(node.args[0])
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name
        if _MAPPING.fullmatch(name):
            return True
        if torch.Tag.pointwise in node.target.tags or _KEEPING.fullmatch(name):
            waiting.extend(node.all_input_nodes)
    return False
