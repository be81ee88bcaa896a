"""What the machine is: figures mean little without it."""

import os
import platform
from pathlib import Path
from typing import Any

# Those that decide how fast matrices are multiplied.
INSTRUCTIONS = [
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
]


def cpuinfo(field: str) -> str:
    """A field of the first processor in `/proc/cpuinfo`, empty where there is none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def instructions() -> list[str]:
    """The instruction sets that matter here."""
    flags = set(cpuinfo("flags").split())
    return [name for name in INSTRUCTIONS if name in flags]


def describe() -> dict[str, Any]:
    """Processor, memory and system, and how busy they were beforehand."""
    family, model = cpuinfo("cpu family"), cpuinfo("model")
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": f"{cpuinfo('model name')} (family {family}, model {model})",
        "cores": len(os.sched_getaffinity(0)),
        "instructions": instructions(),
        "memory_gb": round(pages * page / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }
