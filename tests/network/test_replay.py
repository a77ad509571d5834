"""Replay: finishing from a cut is running from the start, bit for bit, with the values at the cut alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Network, capture


@given(cuts=st.sets(st.integers(0, 4), min_size=1), changed=st.integers(0, 4), seed=st.integers(0, 2**31))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_finishing_equals_running_with_the_same_tensors(
    mixed_network: Network, images: Tensor, cuts: set[int], changed: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        replay = mixed_network.replay(images)
        for cut in sorted(cuts):
            replay.advance(mixed_network.layers[cut])
            layer = mixed_network.layers[max(cut, changed)]
            weight = torch.randn(layer.shape, generator=generator)
            change = {layer.weight: weight}
            assert torch.equal(replay.finish(change), mixed_network.run(images, tensors=change))
            # The cut is as it was: the float network comes out again.
            assert torch.equal(replay.finish(), mixed_network.run(images))


def test_finishing_without_a_cut_is_running(mixed_network: Network, images: Tensor) -> None:
    assert torch.equal(mixed_network.replay(images).finish(), mixed_network.run(images))


def test_only_the_values_at_the_cut_are_kept() -> None:
    network = capture(nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 2), nn.Linear(2, 4)), torch.randn(2, 4))
    with torch.inference_mode():
        replay = network.replay(torch.randn(10, 4))
        live = []
        for layer in network.layers:
            replay.advance(layer)
            live.append(replay.live_bytes)
    assert live == [10 * 4 * 4, 10 * 64 * 4, 10 * 2 * 4]


def test_views_of_one_storage_count_once() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x).chunk(2, dim=1)
            return self.second(a) + b

    network = capture(Split(), torch.randn(2, 4))
    with torch.inference_mode():
        replay = network.replay(torch.randn(5, 4))
        replay.advance(network.layers[1])
    assert replay.live_bytes == 5 * 8 * 4


def test_going_back_is_refused(mixed_network: Network, images: Tensor) -> None:
    replay = mixed_network.replay(images)
    replay.advance(mixed_network.layers[2])
    with pytest.raises(InputError, match="layer 'stem' is first used before the cut"):
        replay.advance(mixed_network.layers[0])


def test_a_change_before_the_cut_is_refused_rather_than_ignored(
    mixed_network: Network, images: Tensor
) -> None:
    replay = mixed_network.replay(images)
    replay.advance(mixed_network.layers[2])
    with pytest.raises(InputError, match=r"tensor 'stem.weight' is read before the cut"):
        replay.finish({"stem.weight": mixed_network.tensors["stem.weight"]})


def test_a_shared_weight_is_replaced_in_all_its_uses(mixed_network: Network, images: Tensor) -> None:
    mix = next(layer for layer in mixed_network.layers if len(layer.nodes) == 2)
    change = {mix.weight: torch.zeros(mix.shape)}
    replay = mixed_network.replay(images)
    replay.advance(mix)
    assert torch.equal(replay.finish(change), mixed_network.run(images, tensors=change))
