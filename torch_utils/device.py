"""The device that a script runs on."""

from __future__ import annotations

import torch

from dnnlib.errors import UserError


def choose_device(name: str | None = None) -> str:
    """``name`` ('cpu', 'cuda', 'cuda:1', ...) when it can be used; None: CUDA where there is one, or the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name} cannot be used ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return name
