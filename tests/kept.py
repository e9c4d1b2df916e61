"""What autograd keeps for a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(function: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that the backward pass of ``function()`` needs, beside the parameters.

    Memory is counted once, however many tensors lie in it. What a checkpoint makes is not kept, and not seen:
    only its inputs are.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result  # until here its graph held all that was counted, so that no memory was used twice
    return sum(found.values())
