"""Memory against time: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def call(function: Callable[..., Result], *inputs, again: bool, **options) -> Result:
    """``function(*inputs, **options)``; with ``again`` only its inputs are kept for the backward pass.

    The function, a module perhaps, must draw no random numbers, which would not be the same again.
    """
    if not again:
        return function(*inputs, **options)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
