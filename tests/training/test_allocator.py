"""What a process frees it gets again without the system's help."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource, sys, torch
from pft_ray.training.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):  # aligned blocks settle after a few
    torch.ones(50_000_000)
before = faults()
for _ in range(3):
    torch.ones(50_000_000)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Pages of 4 KiB that three blocks of 200 MB needed from the system."""
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_freed_blocks_are_used_again():
    assert faults("keep") < 1000
    assert faults("return") > 100_000


LIMITS = """
import numpy as np
from pft_ray.training.allocator import keep_freed_memory
from pft_ray.training.memory import largest_micro_batch, peak_bytes

MIB = 1 << 20
keep_freed_memory()
start = peak_bytes(lambda: None)

def run(size):  # twice, as two phases would; 40 MiB a record, in small blocks
    blocks = [np.ones(MIB // 8, dtype=np.uint64) for _ in range(40 * size)]

run(20)
print(int(peak_bytes(lambda: None) < start + 100 * MIB))
for _ in range(2):
    print(largest_micro_batch(run, 64, start + 220 * MIB))
    lines = open("/proc/self/status").read().splitlines()
    (now,) = (line for line in lines if line.startswith("VmRSS:"))
    print(int(1024 * int(now.split()[1]) < start + 100 * MIB))
"""


def test_what_a_probe_left_does_not_count_in_the_next():
    """A limit of 220 MiB holds four records of 40; eight are tried and freed."""
    command = [sys.executable, "-c", LIMITS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "4", "1", "4", "1"]
