"""Memory against time: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def call(module: nn.Module, *inputs, again: bool, **options) -> Result:
    """``module(*inputs, **options)``; with ``again`` only its inputs are kept for the backward pass.

    The module must draw no random numbers, which would not be the same again.
    """
    if not again:
        return module(*inputs, **options)
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
