"""Rows of a long benchmark, each kept when it is measured, so that a run can be cut and continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from report import RESULTS

__all__ = ["KeptRows", "Row"]

Row = dict[str, Any]


class KeptRows:
    """Rows by name as `results/<name>.json` holds them under ``data``, ``rows``.

    Invariant: every row carries the settings that it was measured under; under others it does not count.

    Parameters
    ----------
    name : str
        File name without suffix.
    settings : dict
        What rows depend on beside their name; anything JSON can hold.
    write : callable
        Writes the report of all rows that count.
    """

    def __init__(self, name: str, settings: dict[str, Any], write: Callable[[dict[str, Row]], None]) -> None:
        self._settings, self._write = settings, write
        path = RESULTS / f"{name}.json"
        known = json.loads(path.read_text(encoding="utf-8"))["data"]["rows"] if path.exists() else {}
        self.rows: dict[str, Row] = {
            key: row for key, row in known.items() if row.get("settings") == settings
        }

    def add(self, key: str, row: Row) -> None:
        """Keep a row and write the report again."""
        self.rows[key] = {**row, "settings": self._settings}
        print(key, row, flush=True)
        self._write(self.rows)
