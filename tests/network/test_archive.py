"""`.pt2` files: exported programs load, and nothing in a file is ever run, unpickled or evaluated."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apportion.errors import InputError
from apportion.network import Network, load_model

Parts = dict[str, bytes]
Program = dict[str, Any]


class Trap:
    """Unpickling it leaves a file behind: proof that a pickle was read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def export(module: nn.Module, x: Tensor, path: Path, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False), path)
    return path


@pytest.fixture(scope="module")
def exported(mixed: nn.Module, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(mixed, images[:2], tmp_path_factory.mktemp("pt2") / "mixed.pt2")


def rewrite(source: Path, target: Path, change: Callable[[Parts], Any]) -> Path:
    """A copy of an archive with its parts, named without the top folder, changed."""
    with zipfile.ZipFile(source) as archive:
        parts = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    change(parts)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"mixed/{name}", content)
    return target


def in_program(change: Callable[[Program], Any]) -> Callable[[Parts], None]:
    """A change to the parsed program."""

    def apply(parts: Parts) -> None:
        program = json.loads(parts["models/model.json"])
        change(program)
        parts["models/model.json"] = json.dumps(program).encode()

    return apply


def in_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Parts], None]:
    """A change to the description of the first weight."""

    def apply(parts: Parts) -> None:
        config = json.loads(parts["data/weights/model_weights_config.json"])
        change(next(iter(config["config"].values())))
        parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    return apply


def nodes(program: Program) -> list[dict[str, Any]]:
    return program["graph_module"]["graph"]["nodes"]  # type: ignore[no-any-return]


def size(text: str) -> Callable[[Parts], None]:
    """A symbolic size in the program's values."""
    return in_program(
        lambda program: program["graph_module"]["graph"]["sym_int_values"].update(
            s9={"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
        )
    )


def test_an_exported_module_loads_as_the_captured_one(
    mixed_network: Network, exported: Path, images: Tensor
) -> None:
    network = load_model(str(exported), example=images)
    assert [layer.name for layer in network.layers] == [layer.name for layer in mixed_network.layers]
    with torch.inference_mode():
        assert torch.equal(network.run(images), mixed_network.run(images))


def test_without_an_example_the_shape_is_read_from_the_file(exported: Path, images: Tensor) -> None:
    network = load_model(str(exported))
    assert network.inputs[0].shape == (3, 9, 9)
    assert network.run(images).shape == (8, 5)


def test_a_renamed_file_without_any_notes_about_its_source_loads(exported: Path, tmp_path: Path) -> None:
    def change(program: Program) -> None:
        for node in nodes(program):
            node["metadata"] = {}

    assert load_model(str(rewrite(exported, tmp_path / "other.pt2", in_program(change)))).layers


def test_tied_weights_are_one_tensor_after_loading(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.middle = nn.Linear(4, 4)
            self.out = nn.Linear(4, 10, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.middle(self.table(ids)))

    path = export(Tied().eval(), torch.zeros(2, 3, dtype=torch.int64), tmp_path / "tied.pt2")
    network = load_model(str(path))
    assert network.float_bits == 32 * (40 + 20)
    assert network.skipped == {}
    (table, _) = network.layers
    assert (table.weight, len(table.lookups), len(table.products)) == ("table.weight", 1, 1)


def test_example_inputs_and_guards_in_the_file_are_never_read(exported: Path, tmp_path: Path) -> None:
    proof = tmp_path / "pickle was read"

    def change(parts: Parts) -> None:
        parts["data/sample_inputs/model.pt"] = pickle.dumps(Trap(proof))
        in_program(lambda program: program.update(guards_code=[f"open({str(proof)!r}, 'w')"]))(parts)

    assert load_model(str(rewrite(exported, tmp_path / "trap.pt2", change))).layers
    assert not proof.exists()


def test_types_named_in_the_structure_of_the_output_are_not_imported(exported: Path, tmp_path: Path) -> None:
    def change(program: Program) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        context = {
            "default_factory_module": "antigravity",
            "default_factory_name": "geohash",
            "dict_context": ["y"],
        }
        spec = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, spec])

    import sys

    assert load_model(str(rewrite(exported, tmp_path / "trap.pt2", in_program(change)))).layers
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_weights(lambda meta: meta.update(use_pickle=True)), "holds 'stem.weight' as a pickled object"),
        (in_weights(lambda meta: meta.update(path_name="../evil")), "pickled object"),
        (in_weights(lambda meta: meta.update(path_name="weight_999")), "is damaged"),
        (in_weights(lambda meta: meta["tensor_meta"].update(sizes=[{"as_int": 10**9}])), "cannot load"),
        (lambda parts: parts.pop("data/weights/model_weights_config.json"), "is damaged"),
        (lambda parts: parts.pop("models/model.json"), "holds 0 exported programs"),
        (lambda parts: parts.update({"models/two.json": b"{}"}), "holds 2 exported programs"),
        (lambda parts: parts.update({"data/aotinductor/model/x.so": b""}), "holds compiled code"),
        (lambda parts: parts.update({"models/model.json": b"{" * 10}), "is damaged"),
        (lambda parts: parts.update({"models/model.json": b"[" * 10**6}), "is damaged"),
        (lambda parts: parts.update({"models/model.json": b"{}"}), "is damaged"),
        (in_program(lambda p: nodes(p)[0].update(target="torch.hub.os.system")), "calls torch.hub.os.system"),
        (in_program(lambda p: nodes(p)[0].update(target="torch.load")), "calls torch.load"),
        (in_program(lambda p: nodes(p)[0].update(target="torch.ops.aten.from_file.default")), "from_file"),
        (
            in_program(lambda p: nodes(p)[0].update(target="torch.ops.mine.op.default")),
            "calls torch.ops.mine",
        ),
        (in_program(lambda p: nodes(p)[0].update(target="_operator.methodcaller")), "methodcaller"),
        (in_program(lambda p: nodes(p)[0].update(target="#json.loads")), "calls #json"),
        (in_program(lambda p: p["range_constraints"].update({"exit()": {}})), r"'exit\(\)', which is not"),
        (size("__import__('os').system('true')"), "which is not arithmetic on symbols"),
        (size("Symbol('s9').__class__"), "which is not arithmetic on symbols"),
        (size("Symbol('exit()')"), "which is not arithmetic on symbols"),
        (size("Symbol('s9', cls=print)"), "which is not arithmetic on symbols"),
        (size("[s9 for s9 in (1, 2)]"), "which is not arithmetic on symbols"),
        (size("s9 +"), "which is not an expression"),
    ],
)
def test_what_could_run_code_or_does_not_fit_together_is_refused(
    exported: Path, tmp_path: Path, change: Callable[[Parts], Any], message: str
) -> None:
    path = rewrite(exported, tmp_path / "changed.pt2", change)
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_truncated_files_and_files_of_other_kinds_are_refused(exported: Path, tmp_path: Path) -> None:
    proof, path = tmp_path / "pickle was read", tmp_path / "model.pt2"
    whole = exported.read_bytes()
    checkpoint = tmp_path / "checkpoint"
    torch.save({"weight": torch.zeros(3)}, checkpoint)
    for content in (b"", b"garbage" * 100, whole[: len(whole) // 2], pickle.dumps(Trap(proof))):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not a .pt2 archive, or is truncated"):
            load_model(str(path))
    path.write_bytes(checkpoint.read_bytes())
    with pytest.raises(InputError, match=r"a checkpoint of torch.save is not a program"):
        load_model(str(path))
    assert not proof.exists()


def test_damaged_bytes_are_noticed(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(exported) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("weight_0"))
    content = bytearray(exported.read_bytes())
    # Past the local header, whose padding torch chooses.
    place = content.index(b"weight_0", info.header_offset) + 400
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC"):
        load_model(str(path))


def test_compressed_and_repeated_entries_are_refused(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mixed/models/model.json", b" " * 10**6)
    with pytest.raises(InputError, match="has compressed entries"):
        load_model(str(path))
    path.write_bytes(exported.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("mixed/models/model.json", b"{}")
    with pytest.raises(InputError, match="has two entries named"):
        load_model(str(path))


def test_a_program_for_one_batch_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).reshape(x.shape[0], 2, 2).flatten(1)

    path = export(Flat().eval(), torch.randn(6, 4), tmp_path / "flat.pt2", dynamic=False)
    with pytest.raises(InputError, match="export it for this shape, with a dynamic first dimension"):
        load_model(str(path))


def test_a_program_exported_in_training_mode_is_refused(mixed: nn.Module, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    path = export(module, torch.randn(3, 4), tmp_path / "training.pt2")
    with pytest.raises(InputError, match="normalises by the statistics of the batch"):
        load_model(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing.pt2"):
        load_model(str(tmp_path / "nothing.pt2"))
