"""The common shape of a benchmark's result file."""

import platform
from pathlib import Path
from typing import Any

from taskmem.lineage.code import commit
from taskmem.records import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """What the figures were taken on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def write_result(name: str, settings: dict[str, Any], sides: dict[str, Any], ratios: dict[str, float]) -> Path:
    """Write benchmarks/results/NAME.json and return its path."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "name": name,
            "commit": commit(),
            "machine": machine(),
            "settings": settings,
            "sides": sides,
            "ratios": ratios,
        },
    )
    return path
