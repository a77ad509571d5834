"""Published results of the methods, beside what was measured here on other networks and data.

    python benchmarks/published.py

Nothing on the first table was measured here. The second is read from results/methods_<network>.json, or
methods_<network>_cuda.json.
"""

from __future__ import annotations

import json
from typing import Any

from methods import MAIN
from networks import NETWORKS
from report import RESULTS, Table, write_report

PAPERS: tuple[tuple[object, ...], ...] = (
    ("LAPQ", "4", "4", 60.3, "Nahshan et al., Machine Learning 110, 2021; with bias correction"),
    ("AdaQuant", "4", "4", 67.5, "Hubara et al., ICML 2021; with the integer programme and tuned biases"),
    ("BRECQ", "4", "float", 70.70, "Li et al., ICLR 2021, float network 71.08"),
    ("BRECQ", "3", "float", 69.81, "the same"),
    ("BRECQ", "2", "float", 66.30, "the same"),
)
OPTIONS = ("w2", "w3", "w4")


def main() -> None:
    """Write results/published_reconstruction.{json,md}."""
    header = ["network", "method", *(f"{option}: {what}" for option in OPTIONS for what in ("lost", "KL"))]
    ours = [row for name in NETWORKS for row in _measured(name)]
    notes = [
        "The first table repeats what the papers state: other checkpoints (ImageNet ResNet-18), other "
        "data, other calibration sets. It was never measured here and is to be compared with nothing below; "
        "it says what the methods are known for.",
        "The second table is ours: first and last layer have 8 bits, activations are float.",
    ]
    write_report(
        "published_reconstruction",
        "Published results of the methods",
        "python benchmarks/published.py",
        [
            Table(
                "Published: top-1 of ImageNet ResNet-18 in percent (not measured here)",
                ["method", "bits of weights", "bits of activations", "top-1", "source"],
                PAPERS,
            ),
            Table("Measured here: top-1 lost in points, and KL to the float network", header, ours),
        ],
        notes,
        {"published": PAPERS, "ours": ours},
    )


def _measured(name: str) -> list[list[object]]:
    """Rows of a network whose methods were measured."""
    pages = [RESULTS / f"methods_{each}.json" for each in (name, f"{name}_cuda")]
    path = next((page for page in pages if page.exists()), None)
    if path is None:
        return []
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["data"]["rows"]
    rows: list[list[object]] = []
    for method in MAIN:
        cells = [found.get(f"{option}: {method}") for option in OPTIONS]
        if any(cells):
            row: list[object] = [name, method]
            for cell in cells:
                row += [_lost(cell), cell["kl"]] if cell else [None, None]
            rows.append(row)
    return rows


def _lost(cell: dict[str, float]) -> float:
    return round(100 * (cell["float_accuracy"] - cell["accuracy"]), 2)


if __name__ == "__main__":
    main()
