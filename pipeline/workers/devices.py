"""Where torch computes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from typing import TYPE_CHECKING

from onceclip.pipeline.errors import DeviceError
from onceclip.pipeline.words import counted

if TYPE_CHECKING:
    import torch

AUTO, CPU, CUDA = "auto", "cpu", "cuda"


def device_named(choice: str) -> torch.device:
    """The device that a name such as "cpu", "cuda" or "cuda:1" means; "auto" is a GPU where there is one, or the CPU.

    Raises DeviceError if torch knows no such device, or this process sees none.
    """
    import torch

    if choice == AUTO:
        return torch.device(CUDA if torch.cuda.is_available() else CPU)
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise DeviceError(f"--device {choice}: torch knows no such device: use auto, cpu, cuda or cuda:1") from error
    if device.type == CUDA and (device.index or 0) >= (seen := torch.cuda.device_count()):
        there = counted(seen, "CUDA device") if seen else "no CUDA device"
        raise DeviceError(f"--device {choice}: {there} visible on {socket.gethostname()}: use --device "
                          f"{'cuda:0' if seen else CPU}")
    return device


def is_gpu(choice: str) -> bool:
    """Whether a name means a GPU, here or, where one is asked for by its kind, elsewhere."""
    import torch

    return choice.startswith(CUDA) or (choice == AUTO and torch.cuda.is_available())


def training_device(choice: str) -> torch.device:
    """The device that adapters are trained on.

    Raises DeviceError as `device_named` does, and for kinds of devices that lack float64 or whole solvers.
    """
    device = device_named(choice)
    if device.type not in (CPU, CUDA):
        raise DeviceError(f"--device {choice}: adapters are trained on cpu or cuda alone: use --device cpu")
    return device


def name_of(device: torch.device) -> str:
    """What result rows call a device: "cpu", or the name of a GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == CUDA else device.type


def device_like(name: str) -> str:
    """The choice of a device that has this name, or the CPU where this process sees none."""
    import torch

    return next((f"{CUDA}:{number}" for number in range(torch.cuda.device_count())
                 if torch.cuda.get_device_name(number) == name), CPU)


@contextmanager
def within_memory(device: torch.device, what: str) -> Iterator[None]:
    """Raise DeviceError where what is done inside does not fit into the memory of a GPU. what: a name for people."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"{what} does not fit into the memory of {name_of(device)}: close what else uses it, take "
                          "fewer shots, or use --device cpu") from error


# Without any of these files Linux has no GPU: asking torch takes seconds in which workers could start.
_DEVICES = "/dev/nvidia*", "/dev/nvhost*", "/dev/nvgpu*", "/dev/kfd", "/dev/dxg"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Whether this machine can have a GPU that torch knows, told without asking torch."""
    return sys.platform != "linux" or any(glob(each) for each in _DEVICES)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process sees, each such as CUDA_VISIBLE_DEVICES takes."""
    if not may_have_gpu():
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return [name.strip() for name in named.split(",")] if named else [str(each) for each in
                                                                      range(torch.cuda.device_count())]
