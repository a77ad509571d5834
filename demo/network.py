"""A residual network for 8 x 8 digits whose layers differ in kind, in size and in how much they matter."""

from __future__ import annotations

from importlib.resources import files

from safetensors.torch import load as load_tensors
from torch import Tensor, nn

__all__ = ["WEIGHTS_FILE", "DigitsNetwork", "digits_network"]

WEIGHTS_FILE = "digits.safetensors"


class DigitsNetwork(nn.Module):
    """Nine quantizable layers, from 144 to 20,736 weights: enough for an allocation to have a choice.

    A convolution, a residual block with the identity as its shortcut, a depthwise-separable pair that halves
    the resolution, a residual block with a strided 1 x 1 convolution as its shortcut, the mean over the
    image and a linear layer. Batch norm follows every convolution.

    Parameters are drawn at random; `digits_network` gives the trained ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.identity_block = ResidualBlock(16, 16, stride=1)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 32, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(32)
        self.strided_block = ResidualBlock(32, 48, stride=2)
        self.classifier = nn.Linear(48, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) in 0..1 to logits (N, 10)."""
        x = self.stem_norm(self.stem(inputs)).relu()
        x = self.identity_block(x)
        x = self.depthwise_norm(self.depthwise(x)).relu()
        x = self.pointwise_norm(self.pointwise(x)).relu()
        x = self.strided_block(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm2(conv2(relu(norm1(conv1(x)))))); both convolutions are 3 x 3.

    The shortcut is the identity where the shapes allow it, else a 1 x 1 convolution with its batch norm.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (N, channels_in, H, W) to (N, channels_out, H / stride, W / stride)."""
        x = self.norm1(self.conv1(inputs)).relu()
        x = self.norm2(self.conv2(x))
        total: Tensor = x + self.shortcut(inputs)
        return total.relu()


def digits_network() -> nn.Module:
    """The trained `DigitsNetwork` in eval mode, its weights read from the package's own data."""
    network = DigitsNetwork()
    network.load_state_dict(load_tensors(files(__package__).joinpath(WEIGHTS_FILE).read_bytes()))
    return network.eval()
