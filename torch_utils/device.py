"""The device that a script runs on, and the memory that it took there."""

from __future__ import annotations

import resource
import sys

import torch

from dnnlib.errors import UserError


def choose_device(name: str | None = None) -> str:
    """``name`` ('cpu', 'cuda', 'cuda:1', ...) when it can be used; None: CUDA where there is one, or the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda") or (name.startswith("cpu") and name != "cpu"):
        raise UserError(f"--device {name} cannot be used (cpu, cuda, cuda:1 ... are known); try --device cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name} cannot be used ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return name


def peak_memory_mb(device: torch.device | str) -> float:
    """Largest memory so far, MiB: what torch allocated on a GPU, or what this process occupied."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)
