"""What a CUDA graph cannot hold, seen without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# what reads a value of the device, or makes a tensor whose size depends on values
READING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "_unique2"}


class Watch(TorchDispatchMode):
    """Collects what a CUDA graph cannot hold: values that are read, and copies from one device to another.

    Copies are seen where the work is on 'meta'; on a CPU values that are read alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        tensors = [x for x in args if isinstance(x, Tensor)]
        masks = (
            [x for x in args[1] or () if x is not None and x.dtype == torch.bool] if name == "index" else []
        )
        if name in READING or masks:
            self.found.append(name)
        if name in ("_to_copy", "copy_") and tensors:
            to = torch.device(kwargs.get("device") or tensors[0].device)
            if {to.type, tensors[-1].device.type} == {"cpu", "meta"}:
                self.found.append(f"{name} from {tensors[-1].device} to {to}")
        return func(*args, **kwargs)


def refuse_tensors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors made of Python's numbers: to 'meta' and on a CPU they copy nothing, to CUDA they wait."""
    for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
        monkeypatch.setattr(owner, name, _from_the_host)


def _from_the_host(*arguments, **_):
    raise AssertionError(f"numbers of the host go to the device: {arguments}")
