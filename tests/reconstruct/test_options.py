"""GPTQ of all options at once is GPTQ of each alone; AdaQuant and learned blocks improve on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerCut, Plan
from apportion.network import Data, LayerCall, Network, StreamedTensors, capture, from_rows, rows
from apportion.quantizer import Quantizer, parse_options
from apportion.reconstruct import (
    AdaQuantOptions,
    BlockOptions,
    Gptq,
    GptqOptions,
    LearnedRounding,
    Learning,
    StraightThrough,
)
from apportion.reconstruct.streams import Streams
from apportion.sensitivity import measure_profile

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
PlanOf = Callable[..., Plan]
OPTIONS = ("w2", "w3", "w2x2", "w4t")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_the_weights_that_gptq_gives_a_plan_of_it(
    network: Network, data: Data, plan: Plan, assign: Assign, option: str
) -> None:
    alone = Gptq(sequential=False).finalize(
        network, assign({layer.name: [option] * layer.shape[0] for layer in plan.layers}), data
    )
    every = GptqOptions(network, data, Quantizer())
    parsed = parse_options(",".join(OPTIONS))
    column = [str(each) for each in parsed].index(option)
    for layer, stored in zip(network.layers, alone.layers, strict=True):
        together = every(layer, parsed, LayerCut(layer.channels, layer.fan_in))
        assert together.shape == (layer.channels, len(OPTIONS), layer.fan_in)
        torch.testing.assert_close(together[:, column], stored.dequantize(), rtol=0, atol=0)


def test_a_step_for_the_whole_tensor_ties_no_rows_of_other_options_together(
    network: Network, data: Data
) -> None:
    layer = next(layer for layer in network.layers if layer.kind == "linear")
    cut = LayerCut(layer.channels, layer.fan_in, layer.fan_in // 2)
    every = GptqOptions(network, data, Quantizer())
    with_tensor, with_another = (every(layer, parse_options(text), cut) for text in ("w2,w2t", "w2,w8"))
    torch.testing.assert_close(with_tensor[:, 0], with_another[:, 0], rtol=1e-6, atol=0)


def test_layers_may_be_asked_for_in_any_order(network: Network, data: Data) -> None:
    options = parse_options("w2,w4")
    every = GptqOptions(network, data, Quantizer())

    def weights(index: int) -> torch.Tensor:
        layer = network.layers[index]
        return every(layer, options, LayerCut(layer.channels, layer.fan_in))

    first = [weights(index) for index in range(len(network.layers))]
    for index in (7, 2, 2, 0, 8):
        assert torch.equal(weights(index), first[index])


def test_a_streamed_network_is_walked_through_once_from_its_last_layer_to_its_first(
    network: Network, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = StreamedTensors(network.tensors, lambda name: network.tensors[name], network.device)
    streamed = Network(network.graph, tensors, network.inputs, network.float_bits)
    options, walked = parse_options("w2,w4"), list[str]()
    advance = Streams.advance

    def counted(self: Streams, exit_: str) -> None:
        walked.append(exit_)
        advance(self, exit_)

    # Positions have weights only where the network is in memory.
    ways = {each: GptqOptions(each, data, Quantizer(), Gptq(weighted=False)) for each in (network, streamed)}
    found = {}
    for each, weights in ways.items():
        layers = each.layers if each is network else each.layers[::-1]
        monkeypatch.setattr(Streams, "advance", counted if each is streamed else advance)
        found[each] = {
            layer.name: weights(layer, options, LayerCut(layer.channels, layer.fan_in)) for layer in layers
        }
    assert len(walked) == len(set(walked)) > 3
    for name, made in found[network].items():
        assert torch.equal(found[streamed][name], made)


def test_scores_after_gptq_are_those_of_its_weights(network: Network, data: Data) -> None:
    options, quantizer = parse_options("w2,w3,w4"), Quantizer()
    few = Data(data.inputs[:32], None, data.name)
    every = GptqOptions(network, few, quantizer)
    nearest, _ = measure_profile(network, few, options, quantizer=quantizer)
    after, _ = measure_profile(network, few, options, quantizer=quantizer, after="gptq", weights=every)
    exact, _ = measure_profile(
        network, few, options, quantizer=quantizer, method="exact", after="gptq", weights=every
    )
    assert (nearest.after, after.after, exact.after) == ("nearest", "gptq", "gptq")
    assert len({nearest.fingerprint.settings, after.fingerprint.settings}) == 2
    fall = [
        scored.loss / other.loss
        for layer, twin in zip(after.layers, nearest.layers, strict=True)
        for scored, other in zip(layer.scores, twin.scores, strict=True)
    ]
    # What a layer loses by itself under GPTQ is a fraction of what it loses by rounding to nearest.
    assert sum(share < 1 for share in fall) >= 0.9 * len(fall)
    layer = network.layers[4]
    weight = every(layer, options, LayerCut(layer.channels, layer.fan_in))[:, 1]
    replaced = network.replace({layer.weight: from_rows(layer, weight)})
    reference, changed = network.run(few.inputs), replaced.run(few.inputs)
    logs = reference.log_softmax(-1)
    loss = (logs.exp() * (logs - changed.log_softmax(-1))).sum(-1).mean()
    assert exact.layers[4].scores[1].loss == pytest.approx(float(loss), rel=1e-4)


def test_for_scores_of_few_samples_the_classifier_is_off_by_more_and_convolutions_are_not(
    network: Network, data: Data
) -> None:
    few = Data(data.inputs[:24], None, data.name)
    options = parse_options("w2,w4")
    fitted, unseen = (GptqOptions(network, few, Quantizer(), unseen=each) for each in (False, True))
    shares = []
    for layer in (network.layers[0], network.layers[-1]):
        weight = rows(layer, network.weight(layer))[:, None]
        own, other = (
            made(layer, options, LayerCut(layer.channels, layer.fan_in)) for made in (fitted, unseen)
        )
        share = float((other - weight).norm() / (own - weight).norm())
        torch.testing.assert_close(other - weight, share * (own - weight), rtol=1e-3, atol=1e-6)
        shares.append(share)
    assert 1 <= shares[0] < 1.02
    assert shares[1] > 1.1


def leaving(network: Network, data: Data, name: str) -> torch.Tensor:
    """What leaves a layer."""
    found = []

    def watch(call: LayerCall, entering: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if call.layer.name == name:
            found.append(output)
        return output

    network.run(data.inputs, on_layer=watch)
    return torch.cat(found)


def test_adaquant_of_all_options_leaves_less_output_error_than_gptq(network: Network, data: Data) -> None:
    options, few = parse_options("w2,w3,w2x2"), Data(data.inputs[:64], None, data.name)
    learned = AdaQuantOptions(network, few, Quantizer(), learning=StraightThrough(iterations=40))
    errors = []
    for every in (GptqOptions(network, few, Quantizer()), learned):
        total = 0.0
        for layer in network.layers[:4]:
            target = leaving(network, few, layer.name)
            made = every(layer, options, LayerCut(layer.channels, layer.fan_in))
            for column in range(len(options)):
                changed = network.replace({layer.weight: from_rows(layer, made[:, column])})
                total += float((leaving(changed, few, layer.name) - target).square().mean())
        errors.append(total)
    assert errors[1] < errors[0]


def test_a_block_is_as_learned_rounding_of_a_plan_leaves_it_on_the_same_inputs(
    network: Network, data: Data, plan: Plan, assign: Assign
) -> None:
    few, options = Data(data.inputs[:48], None, data.name), parse_options("w2,w4")
    method = LearnedRounding(learning=Learning(iterations=30))
    every = BlockOptions(network, few, Quantizer(), options, method)
    whole = method.finalize(
        network, assign({layer.name: ["w2"] * layer.shape[0] for layer in plan.layers}), few
    )
    stored = {layer.name: layer for layer in whole.layers}
    # Only the first block sees the float network's inputs in a plan, too.
    for layer in next(block for block in network.blocks if block.layers).layers:
        made = every(layer, options, LayerCut(layer.channels, layer.fan_in))
        assert made.shape == (layer.channels, 2, layer.fan_in)
        torch.testing.assert_close(made[:, 0], stored[layer.name].dequantize(), rtol=0, atol=0)


class Looked(nn.Module):
    """A block of two embeddings and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Embedding(10, 8), nn.Embedding(7, 8)
        self.inside, self.last = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.last((self.one(ids) + self.inside(self.other(ids % 7))).relu().mean(1))
        return out


def test_a_block_that_begins_with_embeddings_is_learned_too(plan_of: PlanOf) -> None:
    ids = Data(torch.randint(0, 10, (64, 6), generator=torch.Generator().manual_seed(0)), None, "ids")
    network, options = capture(Looked(), ids.inputs[:2]), parse_options("w2,w3")
    method = LearnedRounding(learning=Learning(iterations=60, rate=0.3, pull=0.1))
    every = BlockOptions(network, ids, Quantizer(), options, method)
    whole = method.finalize(network, plan_of(network, ["w2"]), ids)
    start = Gptq().finalize(network, plan_of(network, ["w2"]), ids)
    by_name = {layer.name: (layer, index) for index, layer in enumerate(network.layers)}
    assert set(network.blocks[0].layers) == {by_name[name][0] for name in ("one", "other", "inside")}
    for name in ("one", "other", "inside"):
        layer, index = by_name[name]
        made = every(layer, options, LayerCut(layer.channels, layer.fan_in))
        torch.testing.assert_close(made[:, 0], whole.layers[index].dequantize(), rtol=0, atol=0)
    inside = by_name["inside"][1]
    assert not torch.equal(whole.layers[inside].dequantize(), start.layers[inside].dequantize())


def test_blocks_may_be_asked_for_in_any_order(network: Network, data: Data) -> None:
    few, options = Data(data.inputs[:16], None, data.name), parse_options("w2,w4g32")
    every = BlockOptions(network, few, Quantizer(), options, LearnedRounding(learning=Learning(iterations=2)))

    def weights(index: int) -> torch.Tensor:
        layer = network.layers[index]
        fitting = [option for option in options if option.group <= layer.fan_in]
        return every(layer, fitting, LayerCut(layer.channels, layer.fan_in))

    first = [weights(index) for index in range(len(network.layers))]
    for index in (7, 2, 2, 0, 8):
        assert torch.equal(weights(index), first[index])


@pytest.mark.parametrize(("beside", "option"), [("w2,w8", "w8"), ("w2t,w8t", "w8t"), ("w2t,w4", "w4")])
def test_adaquant_of_an_option_does_not_depend_on_the_others(
    network: Network, data: Data, beside: str, option: str
) -> None:
    few, layer = Data(data.inputs[:48], None, data.name), network.layers[2]
    cut = LayerCut(layer.channels, layer.fan_in)
    learning = StraightThrough(iterations=25)
    found = []
    for options in (parse_options(beside), parse_options(option)):
        made = AdaQuantOptions(network, few, Quantizer(), learning=learning)(layer, options, cut)
        found.append(made[:, [str(each) for each in options].index(option)])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
