"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEEPING_EVERY_100TH = """
import re, sys
import torch
from apportion.network import give_back_freed_memory

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

if sys.argv[1] == "back":
    assert give_back_freed_memory()
before = resident()
tensors = [torch.ones(2**14) for _ in range(2000)]
full = resident() - before
tensors = tensors[::100]
print(full, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the C library of Linux")
def test_tensors_between_others_give_their_memory_back() -> None:
    kept = {}
    for how in ("heap", "back"):
        done = subprocess.run(
            [sys.executable, "-c", KEEPING_EVERY_100TH, how], check=True, capture_output=True, text=True
        )
        full, left = map(int, done.stdout.split())
        assert full > 100e6
        kept[how] = left / full
    # One tensor of a hundred is kept.
    assert kept["back"] < 0.05
    assert kept["back"] < kept["heap"]
