"""Reading `.pt2` files without trusting them.

`torch.export.load` runs code of the file's choosing in several ways: example inputs and old-style weights
are unpickled, symbolic sizes go through `sympy.sympify` (an `eval`), guards are Python source, tree
contexts import modules, operators are looked up by any path below `torch`, and compiled parts are shared
libraries. So what is loaded is not the file but a copy that holds only raw tensors and a checked
program.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram

from ..errors import InputError
from .operators import is_known_target
from .reason import message_of, quiet

__all__ = ["load_archive"]

Json: TypeAlias = Any

_PAYLOADS = (("data/weights/", "weights_config.json"), ("data/constants/", "constants_config.json"))
_RAW_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_SYMBOL = re.compile(r"[a-z]+\d+")
_SYMBOL_OR_DIGITS = re.compile(r"[a-z]+\d+|[-+.e\d]+")
# fmt: off
_SYMBOLIC_NAMES = frozenset(
    {
        "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float", "FloatPow",
        "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "IntTrueDiv", "Integer",
        "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or",
        "Pow", "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt",
        "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt",
        "Unequality", "Where", "ceiling", "false", "floor", "int_oo", "oo", "true",
    }
)
# fmt: on
_SYMBOLIC_SYNTAX = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.keyword,
)


def load_archive(path: Path) -> ExportedProgram:
    """Load an exported program from a file written by `torch.export.save`.

    Pickled data in the file is never read; example inputs are dropped. Programs exported on an
    accelerator come back on the CPU.

    Raises
    ------
    InputError
        Not a `.pt2` archive (a pickle, a checkpoint, anything else), truncated, of another torch's format,
        or holding something that could run code when loaded.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a .pt2 file written by torch.export.save")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.pt2"
        try:
            with zipfile.ZipFile(path) as archive:
                _write_checked(archive, copy)
        except InputError as error:
            raise InputError(f"{path} cannot be loaded: {error}") from error
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise InputError(
                f"{path} is not a .pt2 archive, or is truncated ({error}); write it with "
                "torch.export.save(torch.export.export(model, inputs), 'model.pt2')"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {message_of(error)}; export the model again") from error
        try:
            with quiet():
                return torch.export.load(copy)
        except Exception as error:
            raise InputError(
                f"torch {torch.__version__} cannot load the program in {path}: {message_of(error)}; "
                "export it with the installed version of torch"
            ) from error


def _write_checked(archive: zipfile.ZipFile, copy: Path) -> None:
    """Copy the parts of an archive that are data, and the program once it is checked."""
    records = _records(archive)
    programs = [name for name in records if name.startswith("models/") and name.endswith(".json")]
    if len(programs) != 1:
        raise InputError(
            f"it holds {len(programs)} exported programs; it must be one written by torch.export.save "
            "(a checkpoint of torch.save is not a program: give 'file.py:factory' and --weights instead)"
        )
    model = programs[0].removeprefix("models/").removesuffix(".json")
    for name in records:
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".dll")):
            raise InputError(f"it holds compiled code ({name}), which is never loaded; export it uncompiled")
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as out:

        def put(name: str, content: bytes) -> None:
            out.writestr(f"model/{name}", content)

        for name in ("archive_format", "archive_version", "byteorder", ".data/version"):
            if name in records:
                put(name, archive.read(records[name]))
        put("models/model.json", json.dumps(_checked_program(_json(archive, records[programs[0]]))).encode())
        put("data/sample_inputs/model.pt", b"")
        for folder, config_name in _PAYLOADS:
            config = _json(archive, records[f"{folder}{model}_{config_name}"])
            put(f"{folder}model_{config_name}", json.dumps(_on_cpu(config)).encode())
            for payload in _payloads(config):
                with (
                    archive.open(records[folder + payload]) as source,
                    out.open(f"model/{folder}{payload}", "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target)


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, without the folder that torch puts them in."""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            # Stored entries are no larger than the file; compressed ones could be of any size.
            raise InputError(f"it has compressed entries ({info.filename}), which torch never writes")
        name = info.filename.partition("/")[2]
        if name in records:
            raise InputError(f"it has two entries named {info.filename}; export the model again")
        records[name] = info
    return records


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Json:
    return json.loads(archive.read(info))


def _payloads(config: Json) -> list[str]:
    names = []
    for tensor, meta in config["config"].items():
        if meta["use_pickle"] or not _RAW_PAYLOAD.fullmatch(meta["path_name"]):
            raise InputError(
                f"it holds '{tensor}' as a pickled object, which could run code when loaded; "
                "export the model with plain tensors as weights"
            )
        names.append(meta["path_name"])
    return sorted(set(names))


def _checked_program(program: Json) -> Json:
    """The program with all that torch would evaluate either checked or taken out."""
    program["guards_code"] = []
    module = program["graph_module"]
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    # The other entries describe the modules of the source, which nothing here needs.
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    for entry in module["module_call_graph"]:
        for key in ("in_spec", "out_spec"):
            entry["signature"][key] = _plain_treespec(entry["signature"][key])
    for symbol in program["range_constraints"]:
        _check_symbolic(symbol)
    _check(program)
    return _on_cpu(program)


def _check(value: Json) -> None:
    """Check every operator and size in the tree, and empty the notes about the source."""
    if isinstance(value, list):
        for part in value:
            _check(part)
    elif isinstance(value, dict):
        if "target" in value and "inputs" in value:
            value["metadata"] = {}
            _check_target(str(value["target"]))
        if "expr_str" in value:
            _check_symbolic(str(value["expr_str"]))
        for part in value.values():
            _check(part)


def _check_target(target: str) -> None:
    name = target.removeprefix("torch.ops.").replace("_operator.", "operator.")
    if not is_known_target(name):
        raise InputError(
            f"its program calls {target}, which is not an operator of PyTorch; custom operators cannot be "
            "loaded from a file"
        )


def _check_symbolic(text: str) -> None:
    """Refuse anything but arithmetic on symbols: torch evaluates these strings."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise InputError(f"its program has a size '{text}', which is not an expression") from error
    for node in ast.walk(tree):
        known = isinstance(node, _SYMBOLIC_SYNTAX)
        if isinstance(node, ast.Constant):
            # Strings are the names in `Symbol('s0')` and the digits in `Float('0.5')`.
            known = isinstance(node.value, (int, float)) or bool(_SYMBOL_OR_DIGITS.fullmatch(str(node.value)))
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name)
        elif isinstance(node, ast.Name):
            known = bool(_SYMBOL.fullmatch(node.id)) or node.id in _SYMBOLIC_NAMES
        if not known:
            raise InputError(f"its program has a size '{text}', which is not arithmetic on symbols")


def _plain_treespec(text: str) -> str:
    """The structure of inputs or outputs in lists, tuples and dictionaries.

    A type of some library that records its keys (a transformers output) becomes a dictionary, any other
    becomes a tuple: only where the logits are matters here.
    """

    def plain(spec: Json) -> Json:
        children = [plain(child) for child in spec["children_spec"]]
        kind, context = spec["type"], spec["context"]
        if kind is None:
            return {"type": None, "context": None, "children_spec": []}
        keys = json.loads(context) if isinstance(context, str) else None
        if isinstance(keys, list) and len(keys) == len(children) and all(isinstance(k, str) for k in keys):
            return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": children}
        return {"type": "builtins.tuple", "context": "null", "children_spec": children}

    version, spec = json.loads(text)
    return json.dumps([version, plain(spec)])


def _on_cpu(value: Json) -> Json:
    """Every device named in a JSON tree replaced by the CPU."""
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    if not isinstance(value, dict):
        return value
    cpu = {"type": "cpu", "index": None}
    return {key: cpu if key in ("device", "as_device") else _on_cpu(part) for key, part in value.items()}
