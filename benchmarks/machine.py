"""What the figures were measured on, and how busy it was."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil

QUIET_LOAD = 0.5
_PAUSE_S = 10.0


def describe() -> dict[str, str]:
    """Returns the machine and the versions that matter, by name."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{memory_gib:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": version("torch"),
        "Ray": version("ray"),
        "transformers": version("transformers"),
    }


def load() -> str:
    """Returns the load averages and what the processor does in the next second."""
    averages = " / ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{averages} (1 / 5 / 15 min), {psutil.cpu_percent(interval=1.0):.0f} % busy"


def wait_until_quiet(patience_s: float) -> bool:
    """Waits until the load of the last minute is low; says whether it came to be."""
    deadline = time.monotonic() + patience_s
    while os.getloadavg()[0] >= QUIET_LOAD:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def file_system(path: Path) -> str:
    """Returns the type and device of the file system that holds ``path``."""
    place = str(path.resolve())
    parts = psutil.disk_partitions(all=True)
    holding = [p for p in parts if place.startswith(p.mountpoint.rstrip("/") + "/")]
    part = max(holding, key=lambda p: len(p.mountpoint))
    return f"{part.fstype} on {part.device}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
