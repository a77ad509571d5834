"""What is written tensor by tensor is what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from apportion.export.writer import TensorWriter

KINDS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
)
TENSORS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=8
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(drawn=TENSORS)
def test_the_library_reads_back_every_tensor_and_the_metadata(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[torch.dtype, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    tensors = {
        f"é/{number}": torch.randint(0, 2, shape).to(kind) for number, (kind, shape) in enumerate(drawn)
    }
    path: Path = folder / "x.safetensors"
    with TensorWriter(folder) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.write(path, {"a": 'quoted "text"'})
    assert list(folder.iterdir()) == [path]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": 'quoted "text"'}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
