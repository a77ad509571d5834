"""An interrupted profiling run goes on where it stopped, and never from what is not its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apportion.network import Data, Network
from apportion.quantizer import Quantizer, parse_options
from apportion.sensitivity import FisherScores, FisherSettings, score_fisher, store

OPTIONS = parse_options("w2,w4")
# Chunks of one sample, and a span for each layer.
SMALL = FisherSettings(memory_bytes=200)
Progress = Callable[[int, int], None]


class Interrupted(KeyboardInterrupt):
    """Stands for Ctrl-C."""


def interrupt_after(samples: int) -> Progress:
    def on_progress(done: int, total: int) -> None:
        if done >= samples:
            raise Interrupted

    return on_progress


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SAVE_EVERY_S", -1.0)


def run(
    network: Network,
    data: Data,
    folder: Path | None,
    *,
    key: str = "a",
    how: FisherSettings = SMALL,
    on_progress: Progress | None = None,
) -> FisherScores:
    return score_fisher(
        network, data, OPTIONS, Quantizer(), how, store=folder, key=key, on_progress=on_progress
    )


def same(found: FisherScores, expected: FisherScores) -> None:
    assert torch.equal(found.projections, expected.projections)
    assert torch.equal(found.channel_loss, expected.channel_loss)
    assert torch.equal(found.channel_error, expected.channel_error)


@pytest.mark.parametrize("after", [1, 5, 12, 13, 30, 48])
def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one_and_repeats_no_sample(
    image_network: Network, image_data: Data, tmp_path: Path, after: int
) -> None:
    expected = run(image_network, image_data, None)
    done: list[int] = []
    with pytest.raises(Interrupted):
        run(image_network, image_data, tmp_path, on_progress=interrupt_after(after))
    resumed = run(image_network, image_data, tmp_path, on_progress=lambda now, _: done.append(now))
    same(resumed, expected)
    assert all(now > after for now in done)
    assert (done == []) == (after == len(image_data) * len(image_network.layers))


def test_a_finished_run_measures_nothing_again(
    image_network: Network, image_data: Data, tmp_path: Path
) -> None:
    first = run(image_network, image_data, tmp_path)
    same(run(image_network, image_data, tmp_path, on_progress=interrupt_after(0)), first)


@pytest.mark.parametrize("before_bytes", [200, 6_000, 200_000])
@pytest.mark.parametrize("now_bytes", [200, 4_000, 8_000, 200_000])
def test_a_run_resumed_with_another_memory_bound_is_right(
    image_network: Network, image_data: Data, tmp_path: Path, before_bytes: int, now_bytes: int
) -> None:
    before, now = FisherSettings(memory_bytes=before_bytes), FisherSettings(memory_bytes=now_bytes)
    expected = run(image_network, image_data, None)
    with pytest.raises(Interrupted):
        run(image_network, image_data, tmp_path, how=before, on_progress=interrupt_after(5))
    found = run(image_network, image_data, tmp_path, how=now)
    torch.testing.assert_close(found.projections, expected.projections, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.channel_loss, expected.channel_loss, rtol=1e-4, atol=1e-9)


def test_sums_kept_under_another_key_are_ignored(
    image_network: Network, image_data: Data, tmp_path: Path
) -> None:
    other = image_network.replace(
        {layer.weight: 2 * image_network.weight(layer) for layer in image_network.layers}
    )
    run(other, image_data, tmp_path, key="other")
    same(run(image_network, image_data, tmp_path), run(image_network, image_data, None))


@pytest.mark.parametrize("content", [b"", b"no sums here", b"\xff" * 64], ids=["empty", "text", "bytes"])
def test_a_damaged_store_is_ignored(
    image_network: Network, image_data: Data, tmp_path: Path, content: bytes
) -> None:
    expected = run(image_network, image_data, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(content)
    same(run(image_network, image_data, tmp_path), expected)


def test_a_truncated_store_is_ignored(image_network: Network, image_data: Data, tmp_path: Path) -> None:
    expected = run(image_network, image_data, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    same(run(image_network, image_data, tmp_path), expected)


def test_sums_are_written_every_few_seconds_only(
    image_network: Network, image_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SAVE_EVERY_S", 3600.0)
    with pytest.raises(Interrupted):
        run(image_network, image_data, tmp_path, on_progress=interrupt_after(5))
    assert list(tmp_path.iterdir()) == []
