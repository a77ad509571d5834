"""Models named by a Python factory, with or without weights from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from apportion.errors import InputError
from apportion.network import Data, load_model

SOURCE = """
import torch
from torch import nn
from companion import WIDTH

torch.manual_seed(0)
network = nn.Linear(4, WIDTH)

def plain():
    return nn.Sequential(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH))

def sized(width, *, layers=1, name="net"):
    assert isinstance(name, str)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])

def late():
    from companion import WIDTH
    return nn.Linear(4, WIDTH)

def tied():
    first = nn.Linear(4, 4)
    second = nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second)

def lazy():
    return nn.Sequential(nn.LazyLinear(6))

def typed(kind):
    return nn.Linear(4, 6).to(getattr(torch, kind))

class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6).half()

    def forward(self, x):
        return self.layer(x.half())

def broken():
    return [][3]

def not_a_module():
    return 3

class Model(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
"""
X = torch.randn(3, 4)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "companion.py").write_text("WIDTH = 6\n")
    (tmp_path / "models.py").write_text(SOURCE)
    return str(tmp_path / "models.py")


@pytest.mark.parametrize(
    ("call", "layers"),
    [
        ("plain", 1),
        ("Model", 1),
        ("late", 1),
        ("sized(4)", 1),
        ("sized(4, layers=3)", 3),
        ("sized(4, layers=2, name='a:b, (c)')", 2),
    ],
)
def test_a_function_or_class_of_a_file_with_literal_arguments_makes_the_model(
    source: str, call: str, layers: int
) -> None:
    assert len(load_model(f"{source}:{call}", example=X).layers) == layers


def test_a_function_of_an_importable_module_makes_the_model(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(source).parent))
    assert len(load_model("models:plain", example=X).layers) == 1


def test_the_path_to_import_from_is_as_it_was_after_loading(source: str) -> None:
    import sys

    before = list(sys.path)
    load_model(f"{source}:plain", example=X)
    with pytest.raises(InputError, match="failed"):
        load_model(f"{source}:broken", example=X)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:missing", r"has no function 'missing'; it has .*plain"),
        ("{}:network.weight", "is not a model: neither hf:folder, a .pt2 file nor a Python factory"),
        ("{}:sized(width)", "the arguments must be literals"),
        ("{}:sized(4, **{{'layers': 2}})", "the arguments must be literals.*unpacks"),
        ("{}:sized(__import__('os'))", "the arguments must be literals"),
        ("{}:sized(4)(3)", "the arguments must be literals"),
        ("{}:sized(4", "is not a model"),
        ("{}:sized()", r"sized\(\) failed: .*missing 1 required positional argument"),
        ("{}:broken", r"failed: list index out of range \(at models.py, line \d+: return \[\]\[3\]\)"),
        ("{}:not_a_module", "returned int; it must return a torch.nn.Module"),
        ("{}.missing.py:plain", "there is no file"),
        ("no_such_module_here:plain", "cannot import no_such_module_here: No module named"),
        ("{}", "is not a model: neither hf:folder, a .pt2 file nor a Python factory"),
        ("model.onnx", "is not a model"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_with_the_reason(source: str, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec.format(source), example=X)


@pytest.mark.parametrize("text", ["def broken(:", "import no_such_module_here", "raise SystemExit(3)"])
def test_a_file_that_does_not_import_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(InputError, match=r"cannot import .*bad.py"):
        load_model(f"{path}:model", example=X)


def test_a_factory_needs_an_example(source: str) -> None:
    with pytest.raises(InputError, match="give calibration data with --data"):
        load_model(f"{source}:plain")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_floats_are_given_in_the_type_that_the_network_takes(source: str, tmp_path: Path, kind: str) -> None:
    dtype = getattr(torch, kind)
    module = nn.Linear(4, 6).to(dtype)
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(module, (X.to(dtype),), dynamic_shapes=(rows,))
    torch.export.save(program, tmp_path / "net.pt2")
    for spec in (f"{source}:typed('{kind}')", str(tmp_path / "net.pt2")):
        network = load_model(spec, example=X)
        assert network.inputs[0].dtype == dtype
        output = network.run(Data(X, None, "normal").taken_by(network).inputs)
        assert output.dtype == dtype
    assert load_model(str(tmp_path / "net.pt2")).inputs[0].dtype == dtype


def test_a_module_that_changes_types_by_itself_is_given_floats_as_they_are(source: str) -> None:
    assert load_model(f"{source}:Casting", example=X).inputs[0].dtype == torch.float32


def test_data_that_no_type_makes_fit_is_refused(source: str) -> None:
    for inputs in (torch.randn(3, 5), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(InputError, match="does not run on the given data"):
            load_model(f"{source}:typed('float16')", example=inputs)


def test_weights_are_read_into_the_module(source: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    module[1].running_mean.normal_()
    state = module.state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "weights.safetensors")
    network = load_model(f"{source}:plain", weights=tmp_path / "weights.safetensors", example=X)
    with torch.inference_mode():
        torch.testing.assert_close(network.run(X), module(X))


def test_a_tied_weight_may_be_stored_once(source: str, tmp_path: Path) -> None:
    weights = {"0.weight": torch.eye(4), "0.bias": torch.ones(4), "1.bias": torch.zeros(4)}
    save_file(weights, tmp_path / "weights.safetensors")
    network = load_model(f"{source}:tied", weights=tmp_path / "weights.safetensors", example=X)
    assert len(network.layers) == 1
    torch.testing.assert_close(network.run(X), X + 1)


def test_weights_that_do_not_fit_are_refused_naming_them(source: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"0.weight": torch.zeros(6, 5), "0.bias": torch.zeros(6), "extra": torch.zeros(1)}, path)
    with pytest.raises(InputError) as caught:
        load_model(f"{source}:plain", weights=path, example=X)
    message = str(caught.value)
    assert "4 missing (1.weight, 1.bias, 1.running_mean, ...)" in message
    assert "1 unexpected (extra)" in message
    assert "0.weight is (6, 5) where the module has (6, 4)" in message


def test_weights_for_a_module_without_shapes_are_refused(source: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"0.weight": torch.zeros(6, 4), "0.bias": torch.zeros(6)}, path)
    with pytest.raises(InputError, match=r"'0.weight' is of a lazy layer and has no shape yet"):
        load_model(f"{source}:lazy", weights=path, example=X)


def test_unreadable_weights_are_refused(source: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for prepare in (lambda: None, lambda: path.write_bytes(b"garbage")):
        prepare()
        with pytest.raises(InputError, match="cannot read weights"):
            load_model(f"{source}:plain", weights=path, example=X)


def test_a_file_with_its_own_weights_takes_no_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds its own weights"):
        load_model("model.pt2", weights=tmp_path / "weights.safetensors")
