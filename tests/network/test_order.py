"""The order in which samples are spread."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apportion.network import load_data, spread_order


@given(count=st.integers(1, 3000), data=st.data())
def test_any_samples_in_a_row_are_spread_over_all(count: int, data: st.DataObject) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    start = data.draw(st.integers(0, count - 1))
    some = sorted(order[start : start + data.draw(st.integers(1, count - start))])
    widest = max(after - before for before, after in pairwise([-1, *some, count])) - 1
    assert widest < 2 * count / len(some)


def test_sorted_arrays_are_taken_from_all_over_with_their_labels(tmp_path: Path) -> None:
    labels = np.arange(1000) // 10
    np.savez(tmp_path / "sorted.npz", inputs=labels[:, None].astype(np.float32), labels=labels)
    data = load_data(f"{tmp_path / 'sorted.npz'}", limit=100)
    assert data.labels is not None
    torch.testing.assert_close(data.inputs[:, 0], data.labels.float())
    for part in (data.part(slice(50)), data.part(slice(50, None)), data.part(slice(90, None))):
        assert part.labels is not None
        assert part.labels.float().mean().item() == pytest.approx(49.5, abs=3)
        assert len(part.labels.unique()) > 0.85 * len(part)
    whole = load_data(f"{tmp_path / 'sorted.npz'}")
    assert whole.labels is not None
    assert whole.labels.tolist() == labels.tolist()
