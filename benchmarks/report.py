"""The written outcome of a benchmark: one JSON file of numbers and one Markdown page made from them.

Every page names the command that regenerates it, the day, the machine's cores and the package versions, so
that a number in it can be questioned and measured again.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from apportion.documents import replace_file

__all__ = ["RESULTS", "Table", "assets_folder", "write_report"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PACKAGES = ("apportion", "torch", "numpy", "scipy", "highspy", "cvxpy", "pulp", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Table:
    """A titled table; a float cell is shown with four significant digits, None as a dash."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def assets_folder() -> Path:
    """Folder of real networks and data: `APPORTION_ASSETS`, else `shared/assets` beside the checkout."""
    return Path(os.environ.get("APPORTION_ASSETS", ROOT.parent / "shared" / "assets"))


def write_report(
    name: str,
    title: str,
    command: str,
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write `results/<name>.json` and `results/<name>.md`; return the path of the page.

    Parameters
    ----------
    name : str
        File name without suffix.
    title : str
        Heading of the page.
    command : str
        What to type in the repository root to regenerate the page.
    tables : sequence of Table
        Shown in order.
    notes : sequence of str
        Markdown paragraphs between the heading and the tables: what was measured, how, what is surprising.
    data : mapping, optional
        Raw numbers for the JSON file; anything JSON can hold.
    """
    versions = _versions()
    provenance = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
        "python": platform.python_version(),
        "packages": versions,
    }
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines = [f"# {title}", ""]
    for note in notes:
        lines += [note, ""]
    for table in tables:
        lines += [f"## {table.title}", "", *_markdown(table), ""]
    lines += [
        "## Regenerate",
        "",
        f"    {command}",
        "",
        f"Measured on {provenance['date']} with {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, {packages}.",
    ]
    document = {"title": title, **provenance, "data": dict(data or {})}
    page = RESULTS / f"{name}.md"
    with replace_file(page) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with replace_file(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1, default=_plain) + "\n", encoding="utf-8")
    return page


def _markdown(table: Table) -> list[str]:
    rows = [[_cell(value) for value in row] for row in table.rows]
    numeric = [
        all(isinstance(row[column], (int, float)) or row[column] is None for row in table.rows)
        for column in range(len(table.header))
    ]
    return [
        "| " + " | ".join(table.header) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _plain(value: Any) -> Any:
    # numpy scalars and arrays both know how to become Python values.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"benchmark data holds a {type(value).__name__}, which JSON cannot hold")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
