"""What no choice of options reaches is refused before anything is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import Constraints, CostTable
from apportion.errors import InfeasibleError, InputError
from apportion.network import Network, capture
from apportion.quantizer import parse_option_set, parse_options
from apportion.sensitivity import ActivationSettings, check_feasible


def test_what_is_out_of_reach_is_known_before_measuring(image_network: Network) -> None:
    settings = ActivationSettings(parse_option_set("w2a4").activations)
    for budget in ("act_memory=10B", "bops=10"):
        with pytest.raises(InfeasibleError, match=f"budget {budget} is below"):
            check_feasible(image_network, parse_options("w2"), budget, "layer", activations=settings)
    with pytest.raises(InputError, match="limits what activations take"):
        check_feasible(image_network, parse_options("w2"), "act_memory=9MB", "layer")


class Attention(nn.Module):
    """One head, in which 36 products of queries and keys stay float before softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shares = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.head(shares @ self.value(x)).mean(1)


def test_what_is_said_of_memory_out_of_reach_would_help(image_network: Network) -> None:
    attending = capture(Attention().eval(), torch.randn(2, 6, 4))

    def said(network: Network, budget: str, *, attention: bool = False) -> str:
        settings = ActivationSettings(parse_option_set("w2a4").activations, attention=attention)
        with pytest.raises(InfeasibleError) as refused:
            check_feasible(
                network, parse_options("w2"), f"act_memory={budget}", "layer", activations=settings
            )
        return str(refused.value)

    fewer, other = "add options of fewer activation bits", "--attention"
    for text in (said(image_network, "1B"), said(attending, "1B", attention=True)):
        assert other not in text
    assert other in said(attending, "1B")
    # At the first product: its result, and, of 4 bits each, the input, the queries and the keys.
    floats, all_values = 4 * 36, 4 * 36 + 24 // 2 * 3
    beyond = said(attending, f"{floats - 1}B", attention=True)
    assert "those that stay float alone 0.140625KiB. Raise the budget" in beyond
    assert fewer not in beyond
    within = said(attending, f"{all_values - 1}B", attention=True)
    assert all_values == 180
    assert f"take 0.175782KiB. Raise the budget, or {fewer}" in within


def pair_costs(network: Network, a4: float, *options: str) -> CostTable:
    """A layer costs 8 where it reads 8 bits, and `a4` where it reads 4."""
    costs = {f"{option}{width}": {"a4": a4}.get(width, 8.0) for option in options for width in ("a4", "a8")}
    return CostTable("energy", {layer.name: costs for layer in network.layers})


def test_costs_of_pairs_are_checked_before_anything_is_measured(image_network: Network) -> None:
    def check(table: CostTable, options: str, rules: Constraints | None = None) -> None:
        check_feasible(
            image_network, parse_options("w2,w3"), [f"energy={4 * count}"], "layer", constraints=rules,
            tables=[table], activations=ActivationSettings(parse_option_set(options).activations),
        )  # fmt: skip

    count = len(image_network.layers)
    table = pair_costs(image_network, 4.0, "w2", "w3")
    check(table, "w2a4,w3a8")
    for options, rules in (
        # Activations that are no options, or that rules forbid, make nothing cheaper.
        ("w2a8", None),
        ("w2a4,w3a8", Constraints(forbid={"*": ("a4",)})),
    ):
        with pytest.raises(InfeasibleError, match=f"energy is from {8 * count} to {8 * count}"):
            check(table, options, rules)
    with pytest.raises(InputError, match=r"no cost for layer .* w3a4"):
        check(pair_costs(image_network, 4.0, "w2"), "w2a4,w3a8")
