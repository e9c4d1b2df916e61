"""What torch's dispatcher is asked for."""

from __future__ import annotations

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Collects the operations that run while it is entered, as counters of operations do."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[OpOverload] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.append(function)
        return function(*args, **(kwargs or {}))
