"""Embeddings: scores are those of the gradient of every row, and a tied one is scored for both its uses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerCut
from apportion.network import Data, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherSettings, score_exact, score_fisher
from apportion.sensitivity.lookups import project_lookups

OPTIONS = parse_options("w2..6")
# Sums of a few float32 products, in another order.
TOLERANCE = 1e-5


class Tied(nn.Module):
    """A language model of one mixing layer, whose table is its last layer too, where that is wanted."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + torch.tanh(self.mix(x).cumsum(1) / 4)
        return self.head(x)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def language(request: pytest.FixtureRequest) -> tuple[Network, Data]:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (256, 9))
    return capture(Tied(request.param).eval(), ids), Data(ids, None, "ids")


@pytest.mark.parametrize("places", [(5,), (3, 4)])
@pytest.mark.parametrize("cut", [None, "inputs:4", "inputs:2"])
def test_projections_are_the_products_with_the_gradient_of_each_row(
    places: tuple[int, ...], cut: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that places are taken in several pieces.
    monkeypatch.setattr("apportion.sensitivity.lookups.GATHERED_FLOATS", 2 * 2 * 8)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 6, (4, *places), generator=generator)
    weight = torch.randn(6, 8, generator=generator, requires_grad=True)
    cotangents = [torch.randn(4, *places, 8, generator=generator) for _ in range(3)]
    deltas = torch.randn(6, 2, 8, generator=generator)
    layer_cut = LayerCut.of((6, 8), cut)
    found = project_lookups(ids, cotangents, deltas, layer_cut)
    for sample in range(4):
        for draw, cotangent in enumerate(cotangents):
            rows = nn.functional.embedding(ids[sample], weight)
            (gradient,) = torch.autograd.grad((rows * cotangent[sample]).sum(), weight)
            products = gradient[:, None] * deltas
            expected = products.sum(2)
            if cut is not None:
                expected = torch.stack([run.sum((0, 2)) for run in products.split(layer_cut.inputs, 2)])
            torch.testing.assert_close(found[:, sample, draw], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_scores_of_a_table_follow_exact_ones(language: tuple[Network, Data]) -> None:
    network, data = language
    fisher = score_fisher(network, data, OPTIONS, Quantizer(), FisherSettings(draws=8, share=1.0))
    exact = score_exact(network, data, OPTIONS, Quantizer())
    ratio = fisher.layer_loss()[0, 1:] / exact.loss[0, 1:]
    # Second order, above 2 bits; 256 samples and 8 draws.
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


def test_a_table_and_a_head_of_the_same_values_add_up_to_the_tied_layer_but_for_their_products() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (16, 9))
    tied = Tied(tied=True).eval()
    apart = Tied(tied=False).eval()
    apart.load_state_dict(tied.state_dict() | {"head.weight": tied.table.weight.clone()})
    settings = FisherSettings(share=1.0)
    one, two = (
        score_fisher(capture(module, ids), Data(ids, None, "ids"), OPTIONS, Quantizer(), settings)
        for module in (tied, apart)
    )
    # Layers: table and mix; table, mix and head.
    together = two.projections[:, :, 0] + two.projections[:, :, 2]
    torch.testing.assert_close(one.projections[:, :, 0], together, rtol=1e-3, atol=TOLERANCE)
