"""Time of the whole job, split by stage.

    python benchmarks/stages.py

Each job runs as a user would run it, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from networks import RESNET, VIT
from report import Table, assets_folder, write_report

STAGES = ("profile", "solve", "finalize", "save")


def main() -> None:
    """Measure and write results/stages.{json,md}."""
    models = assets_folder() / "models.py"
    cifar, photos = assets_folder() / "cifar10_lossless.npz", assets_folder() / "imagenet_sample1000_224.zip"
    jobs = {
        "embedded digits": [],
        RESNET: [
            "--model", f"{models}:load('{RESNET}')", "--data", f"{cifar}:train",
            "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
        ],
        VIT: [
            "--model", f"{models}:load('{VIT}')", "--data", str(photos),
            "--mean", "0.5", "--std", "0.5", "--samples", "256",
        ],
    }  # fmt: skip
    rows = []
    for name, arguments in jobs.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "apportion", "--budget", "4b", "--json", "--quiet"]
            began = time.perf_counter()
            done = subprocess.run(
                [*command, *arguments, "--out", str(Path(folder) / "run")],
                check=True, capture_output=True, text=True, cwd=folder,
            )  # fmt: skip
            total = time.perf_counter() - began
        seconds = json.loads(done.stdout)["seconds"]
        rest = total - sum(seconds.values())
        rows.append([name, *(seconds.get(stage) for stage in STAGES), rest, total])
        print(rows[-1], flush=True)
    notes = [
        "`allocate --budget 4b` with default settings: 7 options (w2 to w8), up to 512 calibration inputs "
        "(256 for the ViT), plans per channel and per layer solved and measured, the uniform one too. *Rest* "
        "is starting Python and torch, capturing the network, reading data, and charts.",
    ]
    header = ["job", *(f"{stage}, s" for stage in STAGES), "rest, s", "whole, s"]
    table = Table("Seconds", header, rows)
    write_report(
        "stages", "Whole job by stage", "python benchmarks/stages.py", [table], notes, {"rows": rows}
    )


if __name__ == "__main__":
    main()
