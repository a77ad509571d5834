"""The page of `big_network.py`: what was measured, and what follows for larger networks."""

from __future__ import annotations

import json
from typing import Any

from report import RESULTS, Table, write_report

__all__ = ["kept", "report"]

NAME = "big_network"


def kept() -> dict[str, Any]:
    """What was measured before."""
    path = RESULTS / f"{NAME}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else {}
    return found


def report(found: dict[str, Any]) -> None:
    """Write results/big_network.{md,json,png}."""
    rows = [[name, each["weights"]] for name, each in found.items()]
    write_report(
        NAME, "Big networks on small memory", "python benchmarks/big_network.py --billion",
        [Table("Measured", ["network", "weights"], rows)], [], found,
    )  # fmt: skip
