"""Profiling keeps to its memory bound where gradients of all samples together would not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
BOUND_MIB = 256
"""Of the working memory that is asked for."""
WEIGHT_MIB = 4096 * 4096 * 4 // MIB
SAMPLES = 16

# A process of its own, because a peak is of a process; VmHWM, in KiB, is not inherited from the parent as
# ru_maxrss is.
PROGRAM = f"""
import re
import torch
from torch import nn
from apportion.network import Data, capture
from apportion.quantizer import Quantizer, StepSearch, parse_options
from apportion.sensitivity import FisherSettings, score_fisher

torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 8))
inputs = torch.randn({SAMPLES}, 4096)
network = capture(module, inputs)

def status_kib(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = status_kib("VmRSS")
scores = score_fisher(
    network,
    Data(inputs, None, "normal"),
    parse_options("w4"),
    Quantizer(search=StepSearch.MIN_MAX),
    FisherSettings(memory_bytes={BOUND_MIB} * 2**20),
)
assert bool((scores.layer_loss() > 0).all())
print(status_kib("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_wide_linear_layer_never_needs_the_gradients_of_all_its_samples(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak_mib = int(done.stdout) / 1024
    # Beside the working memory there are the codes and the reconstruction while the weight is quantized.
    allowed_mib = BOUND_MIB + 2 * WEIGHT_MIB
    assert allowed_mib < SAMPLES * WEIGHT_MIB / 2
    assert peak_mib < allowed_mib
