"""Activations are the same wherever they are kept, and weigh no more than their bound in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from apportion.network import ActivationStore


@pytest.mark.parametrize("bound", [0, 2000, 2**20])
def test_activations_beyond_the_bound_are_kept_on_disk_and_are_the_same(bound: int) -> None:
    values = torch.randn(150, 7, generator=torch.Generator().manual_seed(0))
    with ActivationStore(bound) as store:
        first = store.compute(150, lambda part: values[part])
        second = store.compute(150, lambda part: 2 * values[part])
        assert store.held_bytes <= bound
        assert torch.equal(first.take(torch.tensor([3, 149, 3])), values[[3, 149, 3]])
        assert torch.equal(second.take(slice(60, 70)), 2 * values[60:70])
        del first, second
        assert store.held_bytes == 0


def test_samples_folded_with_tokens_are_taken_by_sample() -> None:
    values = torch.arange(24.0).view(4, 3, 2)
    with ActivationStore(2**20) as store:
        found = store.compute(4, lambda part: values[part].flatten(0, 1))
    assert torch.equal(found.take(torch.tensor([2, 0])), values[[2, 0]].flatten(0, 1))


@pytest.mark.parametrize("bound", [0, 250, 2**20])
def test_values_beyond_the_bound_are_kept_on_disk_and_are_the_same(bound: int) -> None:
    values = [torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with ActivationStore(bound) as store:
        kept = [store.keep(value) for value in values]
        assert store.held_bytes == min(4, bound // 120) * 120
        assert all(torch.equal(found, value) for found, value in zip(kept, values, strict=True))
        # Nothing is kept twice.
        assert [store.keep(found) is found for found in kept] == [True] * 4
        assert store.held_bytes == min(4, bound // 120) * 120
        del kept, values
        assert store.held_bytes == 0


def test_a_part_of_a_large_value_is_kept_without_the_rest() -> None:
    large = torch.arange(1000.0).view(10, 100)
    with ActivationStore(2**20) as store:
        kept = store.keep(large[:, :3])
        assert store.held_bytes == 120
        assert torch.equal(kept, large[:, :3])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a Linux process")
def test_what_rests_on_disk_takes_no_memory_until_it_is_read() -> None:
    mib = 2**18
    values = torch.ones(8, mib)  # 8 MiB
    with ActivationStore(0) as store:
        before = _resident_mib()
        kept = [store.keep(values) for _ in range(8)]
        computed = [store.compute(8, lambda part: values[part]) for _ in range(8)]
        assert _resident_mib() - before > 96
        store.rest()
        assert _resident_mib() - before < 32
        assert all(torch.equal(value, values) for value in kept)
        assert all(torch.equal(value.values, values) for value in computed)
        assert _resident_mib() - before > 96


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 2**10
