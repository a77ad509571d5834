"""How many iterations, and images in each, learned rounding needs, and how long the whole default job takes.

    python benchmarks/iterations.py

BRECQ of ResNet-20 at uniform 2 and 3 bits (first and last layer 8) with more and more iterations per block,
and with more images in each, judged on images it has not seen; then `allocate --budget 3.5b --method brecq`
as a user runs it, in a process of its own, stage by stage. Rows are kept one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench import JUDGED_ON, Bench, uniform_plan
from kept import KeptRows, Row
from networks import RESNET, load_subject
from report import Table, assets_folder, write_report

from apportion.reconstruct import Gptq, LearnedRounding, Learning, Method

NAME = "iterations"
COUNTS = (100, 300, 1000, 2000)
BATCHES = (16, 32)
OPTIONS = ("w2", "w3")
GPTQ = "GPTQ alone"
JOB = "job"


def main() -> None:
    """Measure what is missing and write results/iterations.{json,md} after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--job-arguments", default="", help="more arguments of the whole job")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(load_subject(RESNET, arguments.samples))
    default = Learning()
    settings = {"samples": arguments.samples, "threads": arguments.threads, "batch": default.batch}
    kept = KeptRows(NAME, settings, lambda rows: write(settings, rows))
    methods: dict[str, Method] = {GPTQ: Gptq()}
    methods |= {
        f"{count:,}": LearnedRounding(learning=Learning(iterations=count)) for count in arguments.counts
    }
    methods |= {
        f"{default.iterations:,} of {batch} images": LearnedRounding(learning=Learning(batch=batch))
        for batch in BATCHES
    }
    for name, method in methods.items():
        for option in OPTIONS:
            if f"{name}: {option}" not in kept.rows:
                kept.add(f"{name}: {option}", measure(bench, method, option))
    if JOB not in kept.rows:
        kept.add(JOB, whole_job(arguments.threads, arguments.job_arguments.split()))


def measure(bench: Bench, method: Method, option: str) -> Row:
    """Quality of one uniform plan's weights on the images that judge, and the time they took."""
    plan = uniform_plan(bench.network, option)
    wall, processor = time.perf_counter(), time.process_time()
    finalized = method.finalize(bench.network, plan, bench.subject.calibration)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {**bench.quality(finalized), "seconds": wall, "processor_seconds": processor}


def whole_job(threads: int, more: list[str]) -> Row:
    """Time of the default job with BRECQ, and what came of it."""
    models, cifar = assets_folder() / "models.py", assets_folder() / "cifar10_lossless.npz"
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, "-m", "apportion", "--budget", "3.5b", "--method", "brecq",
                "--model", f"{models}:load('{RESNET}')", "--data", f"{cifar}:train",
                "--eval-data", f"{cifar}:test", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225",
                "--json", "--quiet", *more, "--out", str(Path(folder) / "run"),
            ],
            check=True, capture_output=True, text=True, cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
    whole, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = json.loads(done.stdout)
    measured = printed["plan"]["measured"]
    return {
        "kl": measured["loss"],
        "accuracy": measured.get("accuracy"),
        "average_bits": printed["plan"]["complexity"]["average_bits"],
        "unit": printed["plan"]["unit"],
        "stages": printed["seconds"],
        "whole": whole,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def write(settings: dict[str, int], rows: dict[str, Row]) -> None:
    """Write the page of all rows that were measured."""
    names = list(dict.fromkeys(key.split(": ")[0] for key in rows if key != JOB))
    names.sort(key=lambda name: [int(each.replace(",", "")) for each in re.findall(r"[\d,]+", name)])
    table = [
        [
            name,
            *(
                rows[f"{name}: {option}"][what] if f"{name}: {option}" in rows else None
                for option in OPTIONS
                for what in ("kl", "accuracy", "processor_seconds", "seconds")
            ),
        ]
        for name in names
    ]
    header = [f"iterations per block, of {Learning().batch} images"]
    for option in OPTIONS:
        header += [f"{option}: KL", "right", "processor s", "wall s"]
    tables = [Table("BRECQ against iterations", header, table)]
    if JOB in rows:
        job = rows[JOB]
        stages = [[stage, seconds] for stage, seconds in job["stages"].items()]
        stages += [["rest", job["whole"] - sum(job["stages"].values())], ["whole", job["whole"]]]
        tables.append(
            Table("The whole job, wall seconds", ["stage", "seconds"], [list(each) for each in stages])
        )
    notes = [
        f"cifar10_resnet20, {settings['samples']} training images, threads: {settings['threads']}; judged on "
        f"the first {JUDGED_ON} test images. Default: {Learning().iterations:,} iterations of "
        f"{Learning().batch} images. A plan gives one option to all layers but the first and the last, which "
        "have w8.",
    ]
    if JOB in rows:
        notes.append(
            "The whole job: `allocate --budget 3.5b --method brecq` with its default settings (512 images, "
            "options w2 to w8, plans per channel and per layer that compete). "
            f"Kept was the plan per {job['unit']}, {job['average_bits']:.3f} bits, KL {job['kl']:.4f} on the "
            f"lossless test images, {job['processor_seconds']:.0f} processor seconds. *Rest* is starting "
            "Python and torch, capturing the network, reading data, and charts."
        )
    write_report(
        NAME,
        "Iterations of learned rounding",
        f"python benchmarks/iterations.py --samples {settings['samples']} --threads {settings['threads']}",
        tables,
        notes,
        {"rows": rows},
    )


if __name__ == "__main__":
    main()
