"""Mixtures of experts written out: every expert's matrices as layers of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["split_experts"]


class _Expert(nn.Module):
    """``down(act(gate(x)) * up(x))``, without biases."""

    def __init__(self, width: int, inner: int, act: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class _Experts(nn.ModuleList):
    """``sum_e share_e(token) * expert_e(token)``, every expert computed for all tokens.

    A token that an expert is not chosen for enters it as zeros, and without biases leaves it as zeros. So
    what an expert is seen to read, by GPTQ and by the scores, are its own tokens alone.
    """

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            chosen = (top_k_index == number).to(hidden_states.dtype)
            share = (chosen * top_k_weights.to(hidden_states.dtype)).sum(-1, keepdim=True)
            total = total + expert(hidden_states * chosen.amax(-1, keepdim=True)) * share
        return total


def split_experts(module: nn.Module) -> list[str]:
    """Put a list of experts in the place of every stack of them; returns the names of the lists.

    A stack is what transformers has: `gate_up_proj` of shape `(experts, 2 * inner, width)`, gates first, and
    `down_proj` of `(experts, width, inner)`, without biases and norms. Anything else stays as it is, so its
    weights stay float. With `experts` of which `chosen` work on a token, the list computes `experts / chosen`
    times as many products as the stack.
    """
    found = [name for name, part in module.named_modules() if _is_stack(part)]
    for name in found:
        stack: Any = module.get_submodule(name)
        count, width, inner = stack.down_proj.shape
        experts = _Experts(_Expert(width, inner, stack.act_fn) for _ in range(count))
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, experts)
    return found


def _is_stack(part: Any) -> bool:
    gates, down = (dict(part.named_parameters(recurse=False)).get(n) for n in ("gate_up_proj", "down_proj"))
    if gates is None or down is None or gates.ndim != 3 or down.ndim != 3 or not hasattr(part, "act_fn"):
        return False
    if len(list(part.named_parameters())) > 2 or getattr(part, "is_transposed", False):
        return False
    gate = getattr(type(part), "_apply_gate", None)
    if gate is not None and gate.__name__ != "_default_apply_gate":
        return False
    return tuple(gates.shape) == (down.shape[0], 2 * down.shape[2], down.shape[1])
