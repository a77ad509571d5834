"""Reading and writing stored documents: whole or not at all, and never trusting what is read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import InputError

__all__ = [
    "parse_document",
    "read_document",
    "read_text",
    "replace_file",
    "validate_document",
    "write_document",
]

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 400
"""Of an integer; any 64-bit float has fewer, and Python itself refuses to convert beyond 4,300."""

Model = TypeVar("Model", bound=BaseModel)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, else it is removed.

    Readers see the old file or the new one, never a part, also after a crash or Ctrl-C.

    Raises
    ------
    InputError
        The folder cannot be created or written, or `path` is a folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; documents are shared like any other output.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_document(path: Path, document: BaseModel) -> None:
    """Write a pydantic document as indented JSON, in one step.

    Raises
    ------
    InputError
        The document holds NaN or an infinity, or the file cannot be written.
    """
    # Not model_dump_json, which turns NaN into null: the document could be written but not read back.
    data = document.model_dump(mode="json", exclude_none=True)
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(
            f"cannot write {path}: the document holds NaN or an infinity, which JSON has no number for"
        ) from error
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_document(path: Path, model: type[Model], what: str) -> Model:
    """Read and validate a JSON document of at most 64 MiB, nested at most 64 deep.

    Raises
    ------
    InputError
        Missing, unreadable, too large, too deep, not JSON, a field given twice, a number that is not
        finite, or not a valid `model`; names the field.
    """
    what = f"{what} {path}"
    text = read_text(path, what)
    return validate_document(_parse(text, what), model, what)


def read_text(path: Path, what: str) -> str:
    """Read UTF-8 text of at most 64 MiB; `what` stands for the file in messages.

    Raises
    ------
    InputError
        Missing, unreadable, too large or not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            # Never the whole file first: a device has no size and no end.
            stored = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(stored) > MAX_DOCUMENT_BYTES:
            raise InputError(f"{what} has more than {MAX_DOCUMENT_BYTES:,} bytes, the most a document has")
        return stored.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {what}: {reason}") from error


def parse_document(text: str, model: type[Model], what: str) -> Model:
    """Parse and validate JSON text under the same limits as `read_document`.

    Raises
    ------
    InputError
        As `read_document`.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InputError(f"{what} has more than {MAX_DOCUMENT_BYTES:,} bytes, the most a document has")
    return validate_document(_parse(text, what), model, what)


def validate_document(data: Any, model: type[Model], what: str) -> Model:
    """Validate parsed JSON against `model`; the first three problems become one `InputError`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in issue['loc']) or 'document'}: {issue['msg']}"
            for issue in error.errors()[:3]
        ]
        raise InputError(f"{what} is not valid: {'; '.join(problems)}") from error


def _refuse_deep(text: str, what: str) -> None:
    # Counted on the text, because the parser itself recurses; brackets inside strings do not nest.
    depth = 0
    inside_string = escaped = False
    for character in text:
        if inside_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside_string = False
        elif character == '"':
            inside_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"{what} is nested more than {MAX_DEPTH} levels deep")
        elif character in "]}":
            depth -= 1


@dataclass(frozen=True)
class _StrictJson:
    """What Python's parser lets pass though a stored document must not hold it."""

    what: str

    def constant(self, name: str) -> Any:
        raise InputError(f"{self.what} holds {name}, which is not a number in JSON")

    def integer(self, digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise InputError(f"{self.what} holds an integer of {len(digits):,} digits, at most {MAX_DIGITS}")
        return int(digits)

    def number(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise InputError(f"{self.what} holds {digits:.40}, which is too large for a 64-bit float")
        return value

    def fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                raise InputError(f"{self.what} gives the field {name!a} twice; keep one of them")
            fields[name] = value
        return fields


def _parse(text: str, what: str) -> Any:
    _refuse_deep(text, what)
    strict = _StrictJson(what)
    try:
        data = json.loads(
            text,
            parse_constant=strict.constant,
            parse_int=strict.integer,
            parse_float=strict.number,
            object_pairs_hook=strict.fields,
        )
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    # Half of a surrogate pair can be escaped in JSON, but is no text: printing it would fail much later.
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{what} holds a broken character ({error.object[error.start]!a})") from error
    return data


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror}; choose another output folder with --out")
