"""Reads the pickles of the StyleGAN family (StyleGAN, EG3D, MaTe3D) without running anything in them.

Such a file is a dictionary with the networks ``G``, ``D``, ``G_ema`` ... Their classes travel with their
source text, which the original readers execute. Here a file goes through an interpreter of opcodes that
knows no calls (``machine.py``), tensors are recognised and copied out of the bytes (``tensors.py``), and what
remains of a module is its class's name, its tensors and its settings (``modules.py``).

    networks = read_networks("model.pkl")
    networks["G_ema"].tensors()  # {"backbone.mapping.w_avg": StoredTensor(shape=(512,), ...), ...}
    networks["G_ema"].attribute("rendering_kwargs")  # {"ray_start": 2.25, ...}

``python -m torch_utils.legacy convert IN.pkl OUT.safetensors`` is a script like those at the top of the
clone: it lies in ``__main__.py``, which nothing imports, and may therefore use ``training``, where the names
and the configuration of a generator are known. The modules here know nothing of it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from dnnlib.errors import UserError
from torch_utils.legacy.machine import MalformedPickle, read_value
from torch_utils.legacy.modules import PickledModule, as_dict, as_module
from torch_utils.legacy.tensors import StoredTensor, TensorReader

__all__ = ["MalformedPickle", "PickledModule", "StoredTensor", "read_networks", "refused"]

P = ParamSpec("P")
R = TypeVar("R")


def read_networks(path: str | os.PathLike[str]) -> dict[str, PickledModule]:
    """The modules of a pickled dictionary by their keys, or of a bare module under the key ''.

    The file is mapped into memory, not read; tensors are copied when they are asked for. Whatever is wrong
    with it is a UserError.
    """
    data = _mapped(path)
    return refused(path, lambda: _networks(read_value(data)[0], TensorReader(len(data))))


def refused(path: str | os.PathLike[str], action: Callable[[], R]) -> R:
    """What ``action`` returns; where it finds the file malformed, one line that names the file."""
    try:
        return action()
    except MalformedPickle as error:
        reason = str(error).encode("ascii", "backslashreplace").decode()  # names in the file may be anything
        raise UserError(
            f"{path} cannot be read as a model ({reason}): it is damaged or not what it seems; fetch it again"
        ) from None


def _networks(value: Any, reader: TensorReader) -> dict[str, PickledModule]:
    table = as_dict(value)
    found = {"": value} if table is None else table
    modules = {key: as_module(item, reader) for key, item in found.items() if isinstance(key, str)}
    return {key: module for key, module in modules.items() if module is not None}


def _mapped(path: str | os.PathLike[str]) -> memoryview:
    """The bytes of a file, mapped: nothing is read until it is looked at."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise UserError(f"{path} is empty: fetch it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
