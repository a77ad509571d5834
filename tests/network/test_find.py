"""Finding layers: what they are called, how big they are, and what is left float."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apportion.network import LayerCall, Network, capture, from_rows, rows


def layers(network: Network) -> dict[str, tuple[str, int, int, int, int]]:
    return {
        layer.name: (layer.kind, layer.channels, layer.fan_in, layer.groups, layer.macs)
        for layer in network.layers
    }


def calls(network: Network, x: Tensor) -> dict[str, LayerCall]:
    found: dict[str, LayerCall] = {}

    def note(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        found[call.node] = call
        return result

    network.run(x, on_layer=note)
    return found


def test_layers_come_in_execution_order_with_their_sizes_and_costs(mixed_network: Network) -> None:
    assert layers(mixed_network) == {
        "stem": ("conv", 8, 27, 1, 25 * 8 * 27),
        "depthwise": ("conv", 8, 9, 8, 25 * 8 * 9),
        "grouped": ("conv", 8, 8, 2, 25 * 8 * 8),
        "mix": ("linear", 8, 8, 1, 2 * 64),
        "head": ("linear", 5, 8, 1, 40),
    }


def test_a_weight_used_twice_is_one_layer_with_two_nodes(mixed_network: Network) -> None:
    uses = {layer.name: len(layer.nodes) for layer in mixed_network.layers}
    assert uses == {"stem": 1, "depthwise": 1, "grouped": 1, "mix": 2, "head": 1}


def test_a_call_has_the_geometry_of_its_convolution(mixed_network: Network, images: Tensor) -> None:
    found = {call.layer.name: call for call in calls(mixed_network, images).values()}
    assert found["stem"].stride == (2, 2)
    assert found["stem"].padding == ((1, 1), (1, 1))
    assert found["depthwise"].dilation == (2, 2)
    assert found["depthwise"].padding == ((2, 2), (2, 2))
    assert found["grouped"].padding == ((0, 1), (0, 0))
    assert found["grouped"].groups == 2
    assert found["mix"] == LayerCall(found["mix"].layer, found["mix"].node)


@given(
    rank=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "valid", "same"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=16, derandomize=True, deadline=None)
def test_a_convolution_of_explicitly_padded_input_with_the_calls_geometry_gives_its_output(
    rank: int, kernel: int, stride: int, padding: int | str, dilation: int, groups: int
) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    plain = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    stride = 1 if padding == "same" else stride
    layer = convolution(4, 6, kernel, stride, padding, dilation, groups)  # type: ignore[arg-type]
    x = torch.randn(2, 4, *(9, 10, 8)[:rank])
    network = capture(nn.Sequential(layer, nn.Flatten()).eval(), x)

    def compare(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        pads = [side for pair in reversed(call.padding) for side in pair]
        weight, bias = network.weight(call.layer), network.bias(call.layer)
        assert len(call.stride) == len(call.padding) == len(call.dilation) == rank
        again = plain(F.pad(source, pads), weight, bias, call.stride, 0, call.dilation, call.groups)
        torch.testing.assert_close(again, result)
        return result

    with torch.inference_mode():
        network.run(x, on_layer=compare)


class Products(nn.Module):
    """The ways to multiply with a stored matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.addmm = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.matmul = nn.Parameter(torch.randn(6, 5))
        self.turned = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.addmm) @ self.matmul @ self.turned.t()


def test_addmm_and_matmul_are_layers_stored_in_by_out_and_turned_ones_are_linear() -> None:
    network = capture(Products().eval(), torch.randn(2, 4))
    assert [(layer.name, layer.transposed, layer.channels, layer.fan_in) for layer in network.layers] == [
        ("addmm", True, 6, 4),
        ("matmul", True, 5, 6),
        ("turned", False, 3, 5),
    ]
    assert [layer.bias for layer in network.layers] == ["bias", None, None]
    assert [layer.macs for layer in network.layers] == [24, 30, 15]


def test_rows_and_from_rows_are_inverse_and_rows_are_output_channels(
    mixed_network: Network,
) -> None:
    products = capture(Products().eval(), torch.randn(2, 4))
    for network in (mixed_network, products):
        for layer in network.layers:
            weight = network.weight(layer)
            matrix = rows(layer, weight)
            assert matrix.shape == (layer.channels, layer.fan_in)
            again = from_rows(layer, matrix)
            assert again.is_contiguous()
            assert torch.equal(again, weight)


def test_changing_one_row_changes_one_output_channel() -> None:
    network = capture(Products().eval(), torch.randn(2, 4))
    layer = network.layers[0]
    matrix = rows(layer, network.weight(layer)).clone()
    matrix[2] += 1
    x = torch.randn(3, 4)
    outputs: list[Tensor] = []

    def note(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        if call.layer == layer:
            outputs.append(result)
        return result

    network.run(x, on_layer=note)
    network.run(x, tensors={layer.weight: from_rows(layer, matrix)}, on_layer=note)
    changed = (outputs[0] != outputs[1]).any(0)
    assert changed.nonzero().flatten().tolist() == [2]


class Embedding(nn.Module):
    """An embedding tied to the output layer, a learned position, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.position = nn.Parameter(torch.randn(1, 6, 4))
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.middle = nn.Linear(4, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.middle(self.up(self.table(ids) + self.position)))


def test_a_tied_embedding_is_one_layer_and_other_tensors_stay_float_with_the_reason() -> None:
    network = capture(Embedding().eval(), torch.randint(0, 10, (2, 6)))
    assert [layer.name for layer in network.layers] == ["table", "middle"]
    table = network.layers[0]
    assert (table.kind, table.shape, table.macs) == ("linear", (10, 4), 6 * 10 * 4)
    assert [len(nodes) for nodes in (table.nodes, table.lookups, table.products)] == [2, 1, 1]
    assert set(network.skipped) == {"position", "up.weight"}
    assert "conv_transpose1d" in network.skipped["up.weight"]


class Tables(nn.Module):
    """A table of words, one of places, and one that is read in another way too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.places = nn.Embedding(6, 4)
        self.parts = nn.Embedding(9, 4)
        self.turned = nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        x = self.words(ids) + self.places(places) + self.parts(ids) * self.parts.weight.mean()
        return self.turned(ids) @ (self.turned.weight.T @ self.turned.weight) + x


def test_tables_are_layers_where_inputs_choose_their_rows_and_nothing_else_reads_them() -> None:
    ids = torch.randint(0, 9, (3, 6))
    network = capture(Tables().eval(), ids)
    (words,) = network.layers
    assert (words.name, words.kind, words.channels, words.fan_in, words.macs) == (
        "words",
        "embedding",
        9,
        4,
        0,
    )
    assert words.products == ()
    assert network.reads(words) == network.schedule.inputs
    assert "places that no input changes" in network.skipped["places.weight"]
    assert "also read by aten.mean" in network.skipped["parts.weight"]
    seen: list[Tensor] = []

    def note(call: LayerCall, source: Tensor, result: Tensor) -> Tensor:
        assert call.is_lookup
        seen.append(source)
        return result

    network.run(ids, on_layer=note)
    assert torch.equal(seen[0], ids)


class TwoWays(nn.Module):
    """One matrix applied as it is and turned; one bias that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(F.linear(x @ self.matrix, self.matrix)))


def test_a_matrix_applied_in_two_ways_stays_float_and_a_shared_bias_belongs_to_no_layer() -> None:
    network = capture(TwoWays().eval(), torch.randn(2, 4))
    assert [(layer.name, layer.bias) for layer in network.layers] == [("first", None), ("second", None)]
    assert "applied in different ways" in network.skipped["matrix"]


def test_float_bits_counts_what_the_graph_reads_and_tied_tensors_once() -> None:
    network = capture(Embedding().eval(), torch.randint(0, 10, (2, 6)))
    numbers = 10 * 4 + 6 * 4 + (6 * 6 + 6) + (4 * 4 + 4)
    assert network.float_bits == 32 * numbers
    assert sorted(network.tensors) == sorted(
        ["table.weight", "position", "up.weight", "up.bias", "middle.weight", "middle.bias"]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_float_types_are_captured_and_weighed(dtype: torch.dtype) -> None:
    network = capture(nn.Linear(4, 4).to(dtype), torch.randn(2, 4).to(dtype))
    assert network.float_bits == 20 * dtype.itemsize * 8
    assert network.inputs[0].dtype == dtype
