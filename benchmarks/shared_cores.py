"""Time of a job beside busy processes, by how long a thread that waits spins before it sleeps.

    python benchmarks/shared_cores.py

`GOMP_SPINCOUNT` is what torch's OpenMP library on Linux reads when it is loaded: 300,000 is its own default,
1,000 what importing apportion sets where the user has set nothing, 0 is to sleep at once. Runs of the three
take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from report import Table, write_report

SPINS = ("300000", "1000", "0")
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def main() -> None:
    """Measure and write results/shared_cores.{json,md}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 1, 2], help="busy processes")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    for beside in arguments.beside:
        measured: dict[str, list[float]] = {spins: [] for spins in SPINS}
        with busy(beside):
            for _ in range(arguments.rounds):
                for spins in SPINS:
                    measured[spins].append(job_seconds(spins))
                    print(f"{beside} beside, {spins} spins: {measured[spins][-1]:.1f} s", flush=True)
        seconds[str(beside)] = measured
    medians = {
        key: [statistics.median(measured[spins]) for spins in SPINS] for key, measured in seconds.items()
    }
    header = ["busy processes beside", *(f"{int(spins):,} spins" for spins in SPINS)]
    header += [f"{int(SPINS[0]):,} over {int(spins):,}" for spins in SPINS[1:]]
    rows = [[key, *found, *(found[0] / each for each in found[1:])] for key, found in medians.items()]
    write_report(
        "shared_cores",
        "A job beside busy processes",
        f"python benchmarks/shared_cores.py --beside {' '.join(seconds)} --rounds {arguments.rounds}",
        [Table("Seconds of `allocate --budget 4b`, and how many times longer", header, rows)],
        [
            f"Medians of {arguments.rounds} runs each, in turns, with torch's own number of threads. 300,000 "
            "spins are what the OpenMP library does by itself, 1,000 what apportion sets."
        ],
        {"seconds": seconds},
    )


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that each keep a core busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def job_seconds(spins: str) -> float:
    """Wall seconds of the default job."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "apportion", "--budget", "4b", "--quiet", "--out", f"{folder}/run"],
            check=True, capture_output=True, env={**environment, "GOMP_SPINCOUNT": spins}, cwd=folder,
        )  # fmt: skip
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
