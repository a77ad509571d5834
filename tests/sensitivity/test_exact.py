"""Exact scores against full runs of the network, one after another."""

from __future__ import annotations

import pytest
import torch

from apportion.network import Data, Network, from_rows, kl_divergence, rows
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import exact, score_exact

OPTIONS = parse_options("w2..4,w2x2,w3g9")
QUANTIZER = Quantizer()


def test_exact_scores_equal_full_runs_with_one_layer_quantized(
    image_network: Network, image_data: Data
) -> None:
    found = score_exact(image_network, image_data, OPTIONS, QUANTIZER)
    with torch.inference_mode():
        reference = image_network.run(image_data.inputs)
        for row, layer in enumerate(image_network.layers):
            weight = rows(layer, image_network.weight(layer))
            for column, option in enumerate(OPTIONS):
                if option.group > layer.fan_in:
                    assert found.loss[row, column] == 0
                    continue
                quantized = from_rows(layer, QUANTIZER.quantize(weight, option).dequantize())
                logits = image_network.run(image_data.inputs, tensors={layer.weight: quantized})
                loss = kl_divergence(reference, logits)
                # The change is added to the float weight, which rounds in the last bit.
                torch.testing.assert_close(found.loss[row, column], loss.mean(), rtol=1e-3, atol=1e-9)
                error = loss.std() / len(loss) ** 0.5
                torch.testing.assert_close(found.error[row, column], error, rtol=1e-3, atol=1e-8)


def test_exact_scores_do_not_depend_on_the_batch(
    image_network: Network, image_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_exact(image_network, image_data, OPTIONS, QUANTIZER)
    monkeypatch.setattr(exact, "batch_size", lambda network: 5)
    told: list[tuple[int, int]] = []
    parts = score_exact(
        image_network,
        image_data,
        OPTIONS,
        QUANTIZER,
        on_progress=lambda done, total: told.append((done, total)),
    )
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-4, atol=1e-9)
    assert told[-1] == (12, 12)


def test_the_loss_of_tokens_is_the_mean_per_token(token_network: Network, token_data: Data) -> None:
    found = score_exact(token_network, token_data, OPTIONS[:1], QUANTIZER)
    layer = token_network.layers[-1]
    quantized = QUANTIZER.quantize(token_network.weight(layer), OPTIONS[0]).dequantize()
    with torch.inference_mode():
        p = token_network.run(token_data.inputs).double().log_softmax(-1)
        logits = token_network.run(token_data.inputs, tensors={layer.weight: quantized})
        q = logits.double().log_softmax(-1)
    per_token = (p.exp() * (p - q)).sum(-1)
    assert per_token.shape == token_data.inputs.shape
    torch.testing.assert_close(found.loss[-1, 0], per_token.mean(), rtol=1e-3, atol=1e-9)
