"""Values in low bits: the same numbers however they are asked for, and the derivatives of learned steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import (
    LayerCall,
    Network,
    activation_key,
    capture,
    dynamic_activation,
    find_sites,
    load_program,
    sample_sites,
    save_program,
    static_activation,
    with_explicit_activations,
)
from apportion.network.activation import quantize_activation
from apportion.network.data import Data


def entries(network: Network, images: Tensor, levels: int = 15) -> dict[str, Tensor]:
    samples = sample_sites(network, Data(images, None, "noise"), find_sites(network))
    found = {}
    for name, sample in samples.items():
        low, high = min(float(sample.numbers.min()), 0.0), max(float(sample.numbers.max()), 0.0)
        step = (high - low) / levels
        found[activation_key(name)] = static_activation(step, round(-low / step), levels)
    return found


def plain(x: Tensor, step: float, zero: int, levels: int) -> Tensor:
    """The formula, number by number, in double precision."""
    return torch.tensor(
        [(min(max(round(float(v) / step) + zero, 0), levels) - zero) * step for v in x.flatten()]
    ).view_as(x)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(0.01, 2.0), st.integers(1, 255), st.floats(0, 1), st.integers(0, 2**31),
)  # fmt: skip
def test_a_value_becomes_the_nearest_number_of_the_grid(
    step: float, levels: int, share: float, seed: int
) -> None:
    zero = round(share * levels)
    x = 3 * torch.randn(40, generator=torch.Generator().manual_seed(seed))
    found = quantize_activation(x, static_activation(step, zero, levels))
    # Half a step where a number is on the border between two codes, which single precision may move.
    assert ((found - plain(x, step, zero, levels)).abs() <= 1e-4 + step * _on_border(x, step)).all()
    assert torch.equal(quantize_activation(found, static_activation(step, zero, levels)), found)


def _on_border(x: Tensor, step: float) -> Tensor:
    remainder = (x.double() / step).remainder(1.0)
    return ((remainder - 0.5).abs() < 1e-4).float() * 1.01


def test_derivatives_are_straight_through_and_those_of_learned_steps() -> None:
    x = torch.tensor([-1.0, 0.26, 0.9, 7.0], requires_grad=True)
    entry = static_activation(0.5, 1, 7).requires_grad_()
    value = quantize_activation(x, entry)
    assert value.tolist() == [-0.5, 0.5, 1.0, 3.0]
    by_x, by_entry = torch.autograd.grad(value.sum(), (x, entry))
    assert by_x.tolist() == [0.0, 1.0, 1.0, 0.0]
    expected = [-1.0, 1 - 0.26 / 0.5, 2 - 0.9 / 0.5, 6.0]
    assert by_entry.tolist() == pytest.approx([sum(expected), 0.0, 0.0], abs=1e-6)


def test_a_token_has_the_range_of_its_own_numbers() -> None:
    x = torch.tensor([[0.0, 1.0, 3.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(quantize_activation(x, dynamic_activation(3)), x)
    shifted = quantize_activation(torch.tensor([[1.0, 2.0]]), dynamic_activation(1))
    assert shifted.tolist() == [[0.0, 2.0]]


def test_all_readers_of_a_value_get_the_same_numbers(mixed_network: Network, images: Tensor) -> None:
    (key,) = [key for key in entries(mixed_network, images) if key == activation_key("relu")]
    entry = entries(mixed_network, images)[key]
    seen: dict[str, Tensor] = {}
    value: dict[str, Tensor] = {}

    def watch(call: LayerCall, entering: Tensor, leaving: Tensor) -> Tensor:
        seen[call.layer.name] = entering
        return leaving

    def keep(name: str, found: Tensor) -> Tensor:
        value.setdefault(name, found)
        return found

    with torch.inference_mode():
        mixed_network.run(images, on_value=keep)
        mixed_network.run(images, tensors={key: entry}, on_layer=watch)
    assert torch.equal(seen["depthwise"], quantize_activation(value["relu"], entry))


@pytest.mark.parametrize("levels", [3, 255])
def test_the_explicit_program_computes_the_same(
    mixed_network: Network, images: Tensor, levels: int, tmp_path: Path
) -> None:
    given_ = entries(mixed_network, images, levels)
    given_ |= {activation_key(site.name): dynamic_activation(levels)
               for site in find_sites(mixed_network) if site.by_token}  # fmt: skip
    explicit = with_explicit_activations(mixed_network, given_)
    with torch.inference_mode():
        expected = mixed_network.run(images, tensors=given_)
        assert torch.equal(explicit.run(images), expected)
        assert torch.equal(explicit.graph_module(images), expected)
        assert not torch.allclose(mixed_network.run(images), expected)
    save_program(explicit, tmp_path / "program.json")
    loaded = load_program(tmp_path / "program.json", mixed_network.tensors)
    assert torch.equal(loaded.run(images), expected)


def test_a_replay_with_low_bit_values_is_the_run(mixed_network: Network, images: Tensor) -> None:
    with torch.inference_mode():
        replay = mixed_network.replay(images)
        for site in find_sites(mixed_network):
            key = activation_key(site.name)
            tensors = {key: entries(mixed_network, images)[key]}
            replay.advance_to(site.name)
            assert torch.equal(replay.finish(tensors), mixed_network.run(images, tensors=tensors))
        with pytest.raises(InputError, match="before the cut"):
            replay.finish(dict(list(entries(mixed_network, images).items())[:1]))
        with pytest.raises(InputError, match="before the cut"):
            replay.advance_to(find_sites(mixed_network)[0].name)


def test_quantizers_of_no_value_and_with_no_sense_are_refused(mixed_network: Network, images: Tensor) -> None:
    with pytest.raises(InputError, match="no value 'rely'; the nearest are relu"):
        mixed_network.run(images, tensors={activation_key("rely"): static_activation(0.1, 0, 3)})
    for wrong in (static_activation(0.0, 0, 3), static_activation(0.1, 4, 3), static_activation(0.1, 0, 256)):
        with pytest.raises(InputError, match="value 'relu' has the quantizer"):
            mixed_network.run(images, tensors={activation_key("relu"): wrong})


def test_a_token_of_zeros_stays_zero_in_half_precision(tmp_path: Path) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float16)
    found = quantize_activation(x, dynamic_activation(255))
    assert found.dtype is torch.float16
    torch.testing.assert_close(found, x, rtol=0, atol=0.01)
    network = capture(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).half().eval(), x)
    given_ = {activation_key(network.schedule.inputs[0]): dynamic_activation(255)}
    explicit = with_explicit_activations(network, given_)
    expected = network.run(x, tensors=given_)
    assert bool(expected.isfinite().all())
    assert torch.equal(explicit.run(x), expected)
    save_program(explicit, tmp_path / "program.json")
    assert torch.equal(load_program(tmp_path / "program.json", network.tensors).run(x), expected)


def test_a_value_of_single_precision_stays_so_beside_one_of_half() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 3).half(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x.half()).float().relu())
            return out

    x = torch.randn(4, 2)
    network = capture(Mixed().eval(), x[:2])
    given_ = {activation_key("relu"): dynamic_activation(255)}
    assert torch.equal(with_explicit_activations(network, given_).run(x), network.run(x, tensors=given_))
