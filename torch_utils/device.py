"""The device that a script runs on, and the memory that it took there."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from dnnlib.errors import UserError

_PROCESS = Path("/proc/self")  # Linux only


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


def reset_peak_memory(device: torch.device | str) -> bool:
    """Begins :func:`peak_memory_mb` anew, from what is in use now; whether that could be done.

    Of a process that takes Linux: where there is no /proc/self/clear_refs that can be written, the peak goes
    on being that of the whole process.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (_PROCESS / "clear_refs").write_text("5")  # sets VmHWM to the present VmRSS (man proc_pid_clear_refs)
    except OSError:
        return False
    return True


def peak_memory_mb(device: torch.device | str) -> float:
    """Largest memory, MiB, since :func:`reset_peak_memory` or from the beginning: what torch allocated on a
    GPU, or what this process occupied, with all that it had loaded before."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # rather than ru_maxrss, which begins, in a process that another one started, with that one's peak
        status = (_PROCESS / "status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10  # "VmHWM:  1234 kB"
    except (OSError, IndexError):
        pass  # no Linux
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)
