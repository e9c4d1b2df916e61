"""What operations make of tensors of several types, and of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor


def of_one_type(*tensors: Tensor) -> list[Tensor]:
    """The same numbers, all in the type that holds each of theirs, as torch promotes them."""
    dtypes = {each.dtype for each in tensors}
    if len(dtypes) == 1:
        return list(tensors)
    common = reduce(torch.promote_types, dtypes)
    return [each.to(common) for each in tensors]


def undisturbed(x: Tensor) -> AbstractContextManager:
    """Turns autocast off for operations on ``x``'s device: a gradient written by hand, which runs outside of
    it, needs the types of its forward pass."""
    kind = x.device.type
    # asked for only where there is one: entering costs more than small operations do
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()
