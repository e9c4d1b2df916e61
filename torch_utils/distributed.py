"""Several processes started by ``torchrun``. In a single process every function works at no cost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dnnlib.errors import UserError

_PATIENCE = timedelta(hours=1)  # for a process that scores or writes alone: nccl's own is ten minutes


def init(device: str | torch.device | None = None) -> torch.device:
    """Join the group that ``torchrun`` describes in the environment, if any; returns this process's device.

    ``device`` is 'cpu', 'cuda' or None: CUDA where there is one. The backend is nccl on CUDA, gloo on a CPU.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if kind.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {kind} was asked for, but torch sees no CUDA device: use --device cpu")
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {local_rank} of this machine, which has "
                f"{torch.cuda.device_count()} CUDA devices: start at most one process per device"
            )
        kind = torch.device("cuda", local_rank if kind.index is None else kind.index)
        torch.cuda.set_device(kind)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=_PATIENCE)
    return kind


def shutdown() -> None:
    """Leave the group; call it at the end of a script, so that nccl does not warn."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process in the group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean of ``tensor`` over the processes, as a new tensor. Not differentiable."""
    if world_size() == 1:
        return tensor.detach().clone()
    # summed and divided here: gloo has no mean
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def all_reduce_mean_gradients(params: Iterable[torch.nn.Parameter]) -> None:
    """Replace every ``p.grad`` by its mean over the processes.

    With equal shares of a batch and losses that are means, these are the gradients of one process with the
    whole batch. A parameter without a gradient counts as zero where another process has one, and stays
    without where none has, so that optimisers skip it everywhere alike.
    """
    if world_size() == 1:
        return
    params = [p for p in params if p.requires_grad]
    groups: dict[tuple[torch.dtype, torch.device], list[torch.nn.Parameter]] = {}
    for p in params:
        groups.setdefault((p.dtype, p.device), []).append(p)
    for (dtype, device), group in groups.items():
        present = torch.tensor([p.grad is not None for p in group], dtype=dtype, device=device)
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group]
        # one message instead of hundreds
        flat = torch.cat([present, *gradients])
        dist.all_reduce(flat)
        present, flat = flat[: len(group)], flat[len(group) :] / world_size()
        has_gradient = (present > 0).tolist()
        for p, has, mean in zip(group, has_gradient, flat.split([p.numel() for p in group]), strict=True):
            if has:
                p.grad = mean.view_as(p).clone()


@torch.no_grad()
def broadcast_module(module: torch.nn.Module, source: int = 0) -> None:
    """Give every process the parameters and buffers that ``module`` has in the process ``source``."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.data, source)
