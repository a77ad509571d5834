"""Fisher scores against brute force, and their independence of how the work is cut up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.network import Data, Layer, Network, capture
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherSettings, Labels, score_exact, score_fisher
from apportion.sensitivity.candidates import perturbations

from .conftest import Tokens

OPTIONS = parse_options("w2..4,w2x2,w8")
QUANTIZER = Quantizer()
ALL = FisherSettings(labels=Labels.ALL, share=1.0)
# Float32 sums in another order.
TOLERANCE = 1e-4


class Branches(nn.Module):
    """Gated halves of one layer, a residual around them, and sizes and constants read throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(4, 6)
        self.query = nn.Linear(6, 6)
        self.key = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[:, None] >= torch.arange(x.shape[1])
        normed = self.norm(x)
        scores = self.query(normed) @ self.key(normed).transpose(1, 2)
        x = x + scores.masked_fill(~mask, -1e9).softmax(-1) @ normed
        gate, value = self.up(x).chunk(2, -1)
        logits: Tensor = self.head(x + self.down(torch.tanh(gate) * value))
        return logits


def output_change(network: Network, layer: Layer, inputs: Tensor, delta: Tensor) -> Tensor:
    """First-order change of the logits when `delta` is added to the layer's weight."""

    def logits(weight: Tensor) -> Tensor:
        return network.run(inputs, tensors={layer.weight: weight})

    weight = network.weight(layer).detach()
    _, change = torch.autograd.functional.jvp(logits, weight, delta)
    assert isinstance(change, Tensor)
    return change


def quadratic(network: Network, inputs: Tensor, change: Tensor) -> Tensor:
    """``1/2 d' F d`` of every sample, mean over positions."""
    with torch.no_grad():
        p = network.run(inputs).double().softmax(-1)
    change = change.double()
    form = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
    return form.flatten(1).mean(1) / 2 if form.ndim > 1 else form / 2


def by_brute_force(network: Network, data: Data, options: int = len(OPTIONS)) -> Tensor:
    """``1/2 d' F d``, mean over samples, shape (layers, options)."""
    loss = torch.zeros(len(network.layers), options, dtype=torch.float64)
    for row, layer in enumerate(network.layers):
        deltas = perturbations(network, layer, OPTIONS[:options], QUANTIZER)
        for column in range(options):
            delta = deltas[:, column].reshape(layer.shape)
            change = output_change(network, layer, data.inputs, delta)
            loss[row, column] = quadratic(network, data.inputs, change).mean()
    return loss


def repeated(data: Data, times: int) -> Data:
    """Every sample many times, each with draws of its own."""
    return Data(data.inputs.repeat_interleave(times, 0), None, data.name)


def test_all_classes_give_half_the_mean_quadratic_form_also_for_shared_weights(
    image_network: Network, image_data: Data
) -> None:
    assert any(len(layer.nodes) > 1 for layer in image_network.layers)
    found = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, ALL).layer_loss()
    torch.testing.assert_close(found, by_brute_force(image_network, image_data), rtol=TOLERANCE, atol=1e-12)


def test_channel_scores_are_the_quadratic_form_of_one_channel_alone(
    image_network: Network, image_data: Data
) -> None:
    found = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, ALL)
    losses, errors = [], []
    for layer in image_network.layers:
        deltas = perturbations(image_network, layer, OPTIONS[:1], QUANTIZER)[:, 0]
        for channel in range(layer.channels):
            delta = torch.zeros_like(deltas)
            delta[channel] = deltas[channel]
            change = output_change(image_network, layer, image_data.inputs, delta.reshape(layer.shape))
            loss = quadratic(image_network, image_data.inputs, change)
            losses.append(loss.mean())
            errors.append(loss.std() / len(loss) ** 0.5)
    torch.testing.assert_close(found.channel_loss[:, 0], torch.stack(losses), rtol=TOLERANCE, atol=1e-12)
    torch.testing.assert_close(found.channel_error[:, 0], torch.stack(errors), rtol=1e-3, atol=1e-12)


def test_projections_of_layers_add_up_to_the_quadratic_form_of_all_layers_together(
    image_network: Network, image_data: Data
) -> None:
    found = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, ALL)
    joint = found.projections[:, :, :, 0].double().sum(2).square().sum(1).mean() / 2
    change = torch.stack(
        [
            output_change(
                image_network,
                layer,
                image_data.inputs,
                perturbations(image_network, layer, OPTIONS, QUANTIZER)[:, 0].reshape(layer.shape),
            )
            for layer in image_network.layers
        ]
    ).sum(0)
    expected = quadratic(image_network, image_data.inputs, change).mean()
    torch.testing.assert_close(joint, expected, rtol=TOLERANCE, atol=1e-12)


def test_fisher_scores_approach_the_exact_loss_as_the_perturbation_shrinks(
    image_network: Network, image_data: Data
) -> None:
    options = parse_options("w4,w6,w8")
    fisher = score_fisher(image_network, image_data, options, QUANTIZER, ALL).layer_loss()
    exact = score_exact(image_network, image_data, options, QUANTIZER).loss
    departure = (fisher / exact).log().abs().max(0).values
    assert departure[0] > departure[1] > departure[2]
    assert departure[2] < 0.02


@pytest.mark.parametrize("labels", [Labels.SAMPLED, Labels.PROJECTED])
def test_drawn_scores_are_right_on_average(image_network: Network, image_data: Data, labels: Labels) -> None:
    few = Data(image_data.inputs[:4], None, image_data.name)
    many = repeated(few, 250)
    exact = score_fisher(image_network, few, OPTIONS[:2], QUANTIZER, ALL).layer_loss()
    drawn = score_fisher(
        image_network, many, OPTIONS[:2], QUANTIZER, FisherSettings(labels=labels, share=1.0)
    )
    samples = drawn.projections.double().square().sum(1).div(2).unflatten(0, (4, 250))
    standard_error = (samples.var(1).sum(0) / (16 * 250)).sqrt()
    assert bool(((drawn.layer_loss() - exact).abs() <= 4 * standard_error + 1e-9).all())


@pytest.mark.parametrize("labels", [Labels.SAMPLED, Labels.PROJECTED])
def test_the_loss_of_tokens_is_the_mean_per_token(
    token_network: Network, token_data: Data, labels: Labels
) -> None:
    few = Data(token_data.inputs[:4], None, token_data.name)
    drawn = score_fisher(
        token_network, repeated(few, 250), OPTIONS[:2], QUANTIZER, FisherSettings(labels=labels, share=1.0)
    )
    samples = drawn.projections.double().square().sum(1).div(2).unflatten(0, (4, 250))
    standard_error = (samples.var(1).sum(0) / (16 * 250)).sqrt()
    difference = (drawn.layer_loss() - by_brute_force(token_network, few, 2)).abs()
    assert bool((difference <= 4 * standard_error).all())


def test_projected_scores_vary_no_more_than_sampled_ones_on_a_confident_output(
    image_network: Network, image_data: Data
) -> None:
    with torch.no_grad():
        likeliest = image_network.run(image_data.inputs).softmax(-1).amax(-1)
    chosen = int((likeliest - 0.93).abs().argmin())
    assert 0.85 < float(likeliest[chosen]) < 0.99
    one = Data(image_data.inputs[chosen : chosen + 1], None, image_data.name)
    many = repeated(one, 400)
    spread = {}
    for labels in (Labels.SAMPLED, Labels.PROJECTED):
        settings = FisherSettings(labels=labels, share=1.0)
        spread[labels] = score_fisher(image_network, many, OPTIONS[:1], QUANTIZER, settings).layer_error()
    assert bool((spread[Labels.PROJECTED] <= spread[Labels.SAMPLED]).all())


@pytest.mark.parametrize("labels", list(Labels))
@pytest.mark.parametrize("memory_bytes", [1, 4_000, 40_000])
def test_scores_do_not_depend_on_how_samples_and_layers_are_cut(
    image_network: Network, image_data: Data, labels: Labels, memory_bytes: int
) -> None:
    whole = score_fisher(image_network, image_data, OPTIONS, QUANTIZER, FisherSettings(labels=labels))
    cut = score_fisher(
        image_network,
        image_data,
        OPTIONS,
        QUANTIZER,
        FisherSettings(labels=labels, memory_bytes=memory_bytes),
    )
    torch.testing.assert_close(cut.layer_loss(), whole.layer_loss(), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(cut.channel_loss, whole.channel_loss, rtol=1e-5, atol=1e-10)
    # A standard error is a small difference of large sums.
    torch.testing.assert_close(cut.channel_error, whole.channel_error, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("memory_bytes", [1, 2_000])
@pytest.mark.parametrize("module", [Tokens(), Branches()], ids=["tokens", "branches"])
def test_segments_of_networks_with_tokens_and_branches_give_the_scores_of_one(
    module: nn.Module, memory_bytes: int
) -> None:
    torch.manual_seed(5)
    inputs = torch.randint(0, 7, (10, 5)) if isinstance(module, Tokens) else torch.randn(10, 5, 6)
    network, data = capture(module, inputs), Data(inputs, None, "drawn")
    whole, cut = (
        score_fisher(network, data, OPTIONS, QUANTIZER, FisherSettings(memory_bytes=bound, share=1.0))
        for bound in (2**31, memory_bytes)
    )
    torch.testing.assert_close(cut.projections, whole.projections, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(cut.channel_loss, whole.channel_loss, rtol=1e-5, atol=1e-10)


def test_directions_drawn_in_pieces_are_those_drawn_at_once(
    token_network: Network, token_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores() -> Tensor:
        return score_fisher(token_network, token_data, OPTIONS, QUANTIZER, FisherSettings()).projections

    whole = scores()
    monkeypatch.setattr("apportion.sensitivity.labels.DIRECTION_FLOATS", 17)
    torch.testing.assert_close(scores(), whole, rtol=1e-5, atol=1e-8)


def test_the_draws_of_a_sample_depend_on_the_seed_and_its_place_alone(
    image_network: Network, image_data: Data
) -> None:
    def projections(count: int, seed: int) -> Tensor:
        data = Data(image_data.inputs[:count], None, image_data.name)
        return score_fisher(image_network, data, OPTIONS, QUANTIZER, FisherSettings(seed=seed)).projections

    torch.testing.assert_close(projections(5, 0), projections(12, 0)[:5], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(projections(5, 0), projections(5, 1))


def test_options_that_do_not_fit_a_layer_are_scored_zero_there(
    image_network: Network, image_data: Data
) -> None:
    options = parse_options("w4,w4g12")
    found = score_fisher(image_network, image_data, options, QUANTIZER, FisherSettings()).layer_loss()
    for row, layer in enumerate(image_network.layers):
        assert bool(found[row, 1] > 0) == (layer.fan_in >= 12)


def test_progress_counts_the_samples_of_every_span(image_network: Network, image_data: Data) -> None:
    told: list[tuple[int, int]] = []
    score_fisher(
        image_network,
        image_data,
        OPTIONS,
        QUANTIZER,
        FisherSettings(memory_bytes=1),
        on_progress=lambda done, total: told.append((done, total)),
    )
    total = len(image_data) * len(image_network.layers)
    assert told == [(done, total) for done in range(1, total + 1)]


def test_scores_of_attention_do_not_depend_on_how_many_samples_are_run_at_once() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    module = nn.Sequential(encoder, nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    data = Data(torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1)), None, "noise")
    network, options = capture(module, data.inputs[:2]), parse_options("w3,w4")
    together, alone = (
        score_fisher(
            network, data, options, Quantizer(),
            FisherSettings(labels=Labels.ALL, share=1.0, memory_bytes=memory),
        ).layer_loss()
        for memory in (2**31, 2**12)
    )  # fmt: skip
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=0)
    exact = score_exact(network, data, options, Quantizer()).loss
    assert bool((together / exact).log().abs().max() < 0.7)
