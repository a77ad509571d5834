"""Quality sample by sample, for one answer per sample and for one per token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apportion.network import (
    Data,
    Network,
    StreamedTensors,
    capture,
    float_logits,
    measure_quality,
    measure_samples,
    outputs,
    quality,
)


@pytest.fixture(scope="module")
def answers() -> tuple[Network, Data]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(150, 6)
    return capture(module, inputs[:2]), Data(inputs, torch.randint(4, (150,)), "answers")


@pytest.fixture(scope="module")
def tokens() -> tuple[Network, Data]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    inputs = torch.randint(10, (70, 5))
    return capture(module, inputs[:2]), Data(inputs, torch.randint(10, (70, 5)), "tokens")


@pytest.mark.parametrize("subject", ["answers", "tokens"])
def test_samples_are_what_the_whole_network_says_of_each(
    subject: str, request: pytest.FixtureRequest
) -> None:
    network, data = request.getfixturevalue(subject)
    assert data.labels is not None
    weight = network.layers[-1].weight
    changed = {weight: network.tensors[weight] * 1.5}
    reference = float_logits(network, data)
    with torch.inference_mode():
        logits = network.run(data.inputs, tensors=changed)
    found = measure_samples(network, data, changed, reference)
    assert found.right is not None
    assert found.float_right is not None
    assert found.cross_entropy is not None
    assert found.float_cross_entropy is not None
    assert torch.equal(found.right, logits.argmax(-1) == data.labels)
    assert torch.equal(found.float_right, reference.argmax(-1) == data.labels)
    for per_sample, answered in ((found.cross_entropy, logits), (found.float_cross_entropy, reference)):
        assert per_sample.shape == (len(data),)
        expected = nn.functional.cross_entropy(answered.double().flatten(0, -2), data.labels.flatten())
        # Samples have equally many tokens; batches change the last digits of float32 outputs.
        assert float(per_sample.mean()) == pytest.approx(float(expected), rel=1e-5)
    assert measure_quality(network, data, changed, reference) == found.quality()


def test_an_unchanged_network_loses_nothing_and_without_labels_only_the_loss_is_known(
    answers: tuple[Network, Data],
) -> None:
    network, data = answers
    bare = Data(data.inputs, None, "bare")
    found = measure_samples(network, bare, {}, float_logits(network, bare))
    assert found.loss.abs().max() == 0
    assert found.right is None
    assert found.cross_entropy is None
    assert found.quality().accuracy is None


def test_pieces_and_files_give_the_same_numbers(
    tokens: tuple[Network, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data = tokens
    weight = network.layers[-1].weight
    changed = {weight: network.tensors[weight] * 1.5}
    reference = float_logits(network, data)
    expected = measure_samples(network, data, changed, reference)
    # A few positions at a time, a sample at a time, and the reference in a file.
    monkeypatch.setattr(quality, "PIECE", 30)
    monkeypatch.setattr(outputs, "BATCH_FLOATS", 50)
    monkeypatch.setattr(outputs, "LOGITS_BYTES", 100)
    assert outputs.batch_size(network) == 1
    mapped = float_logits(network, data)
    torch.testing.assert_close(mapped, reference, rtol=1e-5, atol=1e-7)
    found = measure_samples(network, data, changed, mapped)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.cross_entropy, expected.cross_entropy, rtol=1e-5, atol=1e-9)


def test_a_streamed_network_is_measured_segment_by_segment_and_reads_every_weight_once(
    answers: tuple[Network, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data = answers
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return network.tensors[name]

    # Room for the tensors of the larger layer, and not for all.
    kept = 500
    tensors = StreamedTensors(network.tensors, read, torch.device("cpu"), kept)
    streamed = Network(network.graph, tensors, network.inputs)
    monkeypatch.setattr(outputs, "SEGMENT_BYTES", 1)
    found = torch.cat(list(outputs.outputs(streamed, data.inputs)))
    torch.testing.assert_close(found, float_logits(network, data))
    weights = [name for name in asked if name in {layer.weight for layer in network.layers}]
    assert sorted(weights) == sorted(layer.weight for layer in network.layers)
