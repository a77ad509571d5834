"""Layers that read what all samples have in common, such as learned queries, are scored sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Data, Network, capture, sample_axes
from apportion.quantizer import parse_option_set
from apportion.sensitivity import ActivationSettings, Profile, measure_profile

SAMPLES, WIDTH = 32, 8
OPTIONS = parse_option_set("w3a4")


class Queries(nn.Module):
    """Learned queries look into the input, as many as there are samples when they are scored."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.repeated = repeated
        self.queries = nn.Parameter(torch.randn(SAMPLES, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        own = self.queries.expand(x.shape[0], -1, -1) if self.repeated else self.queries
        seen = self.key(x)
        return self.head(((self.query(self.norm(own)) @ seen.mT).softmax(-1) @ seen).mean(1))


def queries(repeated: bool) -> tuple[Network, Data]:
    torch.manual_seed(0)
    data = Data(3 * torch.randn(SAMPLES, 6, 4), None, "noise")
    return capture(Queries(repeated).eval(), data.inputs[:2]), data


def scored(network: Network, data: Data) -> Profile:
    settings = ActivationSettings(OPTIONS.activations)
    return measure_profile(network, data, OPTIONS.weights, activations=settings)[0]


def test_a_value_common_to_all_samples_is_known_as_one() -> None:
    network, data = queries(repeated=False)
    layer = next(layer for layer in network.layers if layer.name == "query")
    axis = sample_axes(network, data)[layer.nodes[0]]
    value = torch.zeros(SAMPLES, WIDTH)
    assert axis.shared
    assert axis.first(value, SAMPLES) is None
    assert axis.first(value, 1) is not None


def test_scores_are_those_of_the_same_queries_repeated_for_every_sample() -> None:
    """Only in the first network do the rows of what the layer reads look as if they were samples."""
    shared, repeated = (losses(scored(*queries(each))) for each in (False, True))
    assert "value read by query" in shared
    assert shared == pytest.approx(repeated, rel=1e-3)


def losses(profile: Profile) -> dict[str, float]:
    assert profile.activations is not None
    found = {layer.name: layer.scores[0].loss for layer in profile.layers}
    return found | {
        f"value read by {', '.join(site.readers)}": site.scores[0].loss for site in profile.activations.sites
    }
