"""Reading and writing stored documents: whole or not at all, and never trusting what is read."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import InputError

__all__ = ["read_document", "replace_file", "write_document"]

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DEPTH = 64

Model = TypeVar("Model", bound=BaseModel)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, else it is removed.

    Readers see the old file or the new one, never a part, also after a crash or Ctrl-C.

    Raises
    ------
    InputError
        The folder cannot be created or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose another output folder with --out"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; documents are shared like any other output.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_document(path: Path, document: BaseModel) -> None:
    """Write a pydantic document as indented JSON, in one step."""
    text = document.model_dump_json(indent=2, exclude_none=True)
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_document(path: Path, model: type[Model], what: str) -> Model:
    """Read and validate a JSON document of at most 64 MiB, nested at most 64 deep.

    Raises
    ------
    InputError
        Missing, unreadable, too large, too deep, not JSON, or not a valid `model`; names the field.
    """
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise InputError(
                f"{what} {path} has {size_bytes:,} bytes; documents have at most {MAX_DOCUMENT_BYTES:,}"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {what} {path}: {reason}") from error
    _refuse_deep(text, f"{what} {path}")
    try:
        data = json.loads(text, parse_constant=_refuse_constant(f"{what} {path}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{what} {path} is not JSON: {error}") from error
    return validate_document(data, model, f"{what} {path}")


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


def _refuse_constant(what: str) -> Callable[[str], Any]:
    def refuse(name: str) -> Any:
        raise InputError(f"{what} holds {name}, which is not a number in JSON")

    return refuse
