"""What was measured on."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from onceclip.adapters.cpu import fast_bfloat16

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")  # that products depend on
_PACKAGES = ("onceclip", "torch", "numpy", "zarr", "scikit-learn", "open_clip_torch")


@cache
def this_machine() -> dict[str, Any]:
    """Processor with its instructions, cores, memory, system and GPU.

    bfloat16: whether the processor multiplies it faster than float32. capability: what torch's own kernels use.
    """
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = set(known.get("flags", known.get("Features", "")).split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": known.get("model name") or platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "instructions": [name for name in _INSTRUCTIONS if name in has], "bfloat16": fast_bfloat16(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_gib": round(memory, 1), "system": platform.system(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def precisions() -> dict[str, bool]:
    """The types that trainings are timed in, each with what `narrow` is then: bfloat16 only where it is of use."""
    return {"float32": False, "bfloat16": True} if this_machine()["bfloat16"] else {"float32": False}


@cache
def these_versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
