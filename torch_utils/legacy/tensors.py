"""Tensors of a pickle: what torch's rebuilding functions would have made, from bounds-checked bytes.

A module that is pickled by itself (not by ``torch.save``) holds each tensor as

    _rebuild_tensor_v2(storage, offset, size, stride, ...)      storage = _load_from_bytes(file)

where ``file`` is a whole file of ``torch.save`` in the format before zip archives: pickles of a magic number,
a version, some facts and one storage, the list of its keys, then its element count and its bytes. That inner
file goes through the same machine as the outer one; ``torch.load`` is not involved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_utils.legacy.machine import Global, Inert, MalformedPickle, PersistentId, called, read_value

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_OPCODES, _MAX_TEXT = 100, 4096  # of each of the five pickles of a storage; torch writes about 30
_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 48  # of a dimension, a stride or an offset: their products stay exact and small
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_SAME_SIZE = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}  # numpy has no bfloat16
_NUMPY_KINDS = "fiub"  # of arrays: floats, integers and truth values, never objects


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file: its shape is known, its values are copied out by :meth:`read`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    _copy: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """A contiguous copy on the CPU."""
        return self._copy()


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    count: int  # of elements
    data: memoryview


class TensorReader:
    """Finds tensors in values that :mod:`torch_utils.legacy.machine` read. Keeps what was found."""

    def __init__(self, size: int) -> None:
        """``size`` of the file in bytes."""
        self.size = size
        self._storages: dict[int, _Storage] = {}
        self._tensors: dict[int, StoredTensor] = {}

    def find(self, value: Any) -> StoredTensor | None:
        """The tensor or numeric array that ``value`` stands for; None where it is something else.

        Raises :class:`MalformedPickle` where it is a tensor whose description does not fit its bytes.
        """
        if not called(value):
            return None
        if id(value) not in self._tensors:
            found = self._rebuild(value)
            if found is None:
                return None
            self._tensors[id(value)] = found  # the caller holds the tree, so ids stay what they are
        return self._tensors[id(value)]

    def _rebuild(self, value: Inert) -> StoredTensor | None:
        name = called(value)
        args = value.args if isinstance(value.args, tuple) else ()
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            inner = args[0] if args else None
            if "_rebuild_tensor" not in called(inner):
                raise MalformedPickle("a parameter without a tensor")
            return self.find(inner)
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            if len(args) < 4:
                raise MalformedPickle("a tensor with too few facts")
            return _view(self._storage(args[0]), *args[1:4])
        if name.endswith("multiarray._reconstruct") and name.startswith("numpy."):
            return _array(value.state)
        return None

    def _storage(self, value: Any) -> _Storage:
        if called(value) != "torch.storage._load_from_bytes":
            raise MalformedPickle("a tensor whose storage is not in the file")
        if id(value) not in self._storages:
            args = value.args
            if not isinstance(args, tuple) or len(args) != 1 or not isinstance(args[0], memoryview):
                raise MalformedPickle("a storage without bytes")
            self._storages[id(value)] = parse_storage(args[0])
        return self._storages[id(value)]


def parse_storage(data: memoryview) -> _Storage:
    """A storage in the format of ``torch.save(..., _use_new_zipfile_serialization=False)``."""
    position, parts = 0, []
    for _ in range(5):
        value, position = read_value(data, position, _MAX_OPCODES, _MAX_TEXT)
        parts.append(value)
    magic, version, facts, reference, keys = parts
    if magic != _MAGIC or version != _VERSION or not isinstance(facts, dict):
        raise MalformedPickle("a storage of an unknown format")
    if facts.get("little_endian") is not True:
        raise MalformedPickle("a storage of a big-endian machine")
    key = reference.key if isinstance(reference, PersistentId) else None
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Global):
        raise MalformedPickle("a storage that is described in an unknown way")
    single = isinstance(keys, list) and len(keys) == 1 and isinstance(keys[0], str) and keys[0] == key[2]
    if not single or (len(key) > 5 and key[5] is not None):
        raise MalformedPickle("a storage that is part of another one")
    dtype = _STORAGES.get(key[1].name)
    if dtype is None:
        raise MalformedPickle("a storage of an unknown kind of numbers")
    header = data[position : position + 8]
    body = data[position + 8 :]
    count = int.from_bytes(header, "little")
    if len(header) != 8 or count != key[4] or count * dtype.itemsize != len(body):
        raise MalformedPickle("a storage of another length than it says")
    return _Storage(dtype, count, body)


def _view(storage: _Storage, offset: Any, size: Any, stride: Any) -> StoredTensor:
    """Size and stride into a storage, as ``torch.as_strided`` takes them, but never beyond its end."""
    if not _is_count(offset) or not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise MalformedPickle("a tensor with a senseless shape")
    elements = prod(size)
    if elements:
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        # no more elements than the storage has: strides of 0 must not blow a few bytes up to gigabytes
        if last >= storage.count or elements > storage.count:
            raise MalformedPickle("a tensor that goes beyond its storage")

    def copy() -> Tensor:
        if not elements:
            return torch.empty(size, dtype=storage.dtype)
        item = storage.dtype.itemsize
        steps = [step * item for step in stride]
        raw = np.ndarray(size, _SAME_SIZE[item], storage.data, offset * item, steps)  # checks the bounds too
        values = torch.from_numpy(raw.copy(order="C"))
        return values.ne(0) if storage.dtype == torch.bool else values.view(storage.dtype)

    return StoredTensor(size, storage.dtype, copy)


def _array(state: Any) -> StoredTensor:
    """The state of a pickled numpy array: version, shape, dtype, whether in Fortran's order, bytes."""
    if not isinstance(state, tuple) or len(state) != 5 or not _are_counts(state[1]):
        raise MalformedPickle("an array that is described in an unknown way")
    _, shape, dtype, fortran, data = state
    kind = numpy_dtype(dtype)
    if kind is None or not isinstance(data, memoryview) or len(data) != prod(shape) * kind.itemsize:
        raise MalformedPickle("an array that is not numbers, or of another length than it says")
    native = kind.newbyteorder("=")

    def copy() -> Tensor:
        array = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(array, native, order="C"))

    try:
        found = torch.from_numpy(np.empty(0, native)).dtype
    except TypeError:
        raise MalformedPickle(f"an array of {native}, which torch does not have") from None
    return StoredTensor(shape, found, copy)


def numpy_dtype(value: Any) -> np.dtype | None:
    """The numeric dtype that a pickled ``numpy.dtype`` stands for; None for everything else."""
    if called(value) != "numpy.dtype":
        return None
    name = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if not isinstance(name, str) or len(name) != 2 or name[0] not in _NUMPY_KINDS or name[1] not in "1248":
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    try:
        return np.dtype((order if order in ("<", ">") else "") + name)
    except TypeError:
        return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MAX_DIMENSIONS and all(map(_is_count, value))
