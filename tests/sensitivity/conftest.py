"""Networks small enough to score by brute force, and a profile made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Data, Network, capture
from apportion.quantizer import parse_options
from apportion.sensitivity import LayerProfile, OptionScore, Profile, ProfileArrays
from apportion.sensitivity.profile import Fingerprint


class Images(nn.Module):
    """A strided and a depthwise convolution, a linear layer used twice, another at the end; 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.depthwise(x)).relu().mean((2, 3))
        logits: Tensor = self.head(self.shared(torch.tanh(self.shared(x))))
        return logits


class Tokens(nn.Module):
    """Classes for every token, which see each other through their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = torch.tanh(self.mix(x) + x.mean(1, keepdim=True))
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # On networks this small a second thread costs more than it saves.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_data() -> Data:
    """Twelve images, `(12, 2, 7, 7)`."""
    inputs = torch.randn(12, 2, 7, 7, generator=torch.Generator().manual_seed(2))
    return Data(inputs, None, "twelve images")


@pytest.fixture(scope="session")
def image_network(image_data: Data) -> Network:
    """The captured `Images`, with outputs that are neither sure nor uniform."""
    torch.manual_seed(3)
    module = Images()
    with torch.no_grad():
        module.head.weight.mul_(6)
    return capture(module, image_data.inputs)


@pytest.fixture(scope="session")
def token_data() -> Data:
    """Ten sequences of five tokens."""
    ids = torch.randint(0, 7, (10, 5), generator=torch.Generator().manual_seed(4))
    return Data(ids, None, "ten sequences")


@pytest.fixture(scope="session")
def token_network(token_data: Data) -> Network:
    """The captured `Tokens`."""
    torch.manual_seed(5)
    module = Tokens()
    with torch.no_grad():
        module.head.weight.mul_(4)
    return capture(module, token_data.inputs)


MakeProfile = Callable[..., tuple[Profile, ProfileArrays]]


def handmade_profile(
    shapes: tuple[tuple[int, int], ...] = ((4, 30), (6, 50), (3, 20)),
    options: str = "w2..5",
    seed: int = 0,
) -> tuple[Profile, ProfileArrays]:
    """A profile of linear layers whose channel losses are random and fall by about 4 with every bit."""
    parsed = parse_options(options)
    generator = torch.Generator().manual_seed(seed)
    channels = sum(shape[0] for shape in shapes)
    falling = torch.tensor([4.0 ** -(option.bits * option.points) for option in parsed])
    spread = torch.rand(channels, len(parsed), generator=generator) + 0.1
    weights = torch.rand(channels, 1, generator=generator) ** 4 + 1e-3
    channel_loss = (spread * weights * falling).double()
    layers, start = [], 0
    for row, (outputs, fan_in) in enumerate(shapes):
        loss = channel_loss[start : start + outputs].sum(0)
        start += outputs
        scores = tuple(
            OptionScore(
                option=str(option),
                size_bits=option.size_bits(outputs, fan_in),
                loss=float(loss[column]),
                standard_error=float(loss[column]) / 10,
            )
            for column, option in enumerate(parsed)
            if option.group <= fan_in
        )
        layers.append(
            LayerProfile(
                name=f"layers.{row}.linear",
                kind="linear",
                shape=(outputs, fan_in),
                fan_in=fan_in,
                macs=outputs * fan_in,
                scores=scores,
            )
        )
    weight_count = sum(math.prod(shape) for shape in shapes)
    profile = Profile(
        method="fisher",
        labels="projected",
        draws=2,
        data="made by hand",
        samples=3,
        seed=0,
        quantizer={"search": "mse", "p": 2.0, "rounding": "nearest", "fit": "joint"},
        options=tuple(str(option) for option in parsed),
        fingerprint=Fingerprint(weights="a" * 64, data="b" * 64, settings="c" * 64),
        weight_count=weight_count,
        fixed_bits=32 * channels,
        float_bits=32 * (weight_count + channels),
        layers=tuple(layers),
    )
    arrays = ProfileArrays(
        channel_loss=channel_loss,
        channel_error=channel_loss / 10,
        projections=torch.zeros(3, 2, len(shapes), len(parsed)),
    )
    return profile, arrays


@pytest.fixture(scope="session")
def make_profile() -> MakeProfile:
    """See `handmade_profile`."""
    return handmade_profile
