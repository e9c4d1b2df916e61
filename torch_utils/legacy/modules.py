"""Modules of a pickle: tensors of a ``torch.nn.Module`` under their state-dict names, and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from torch_utils.legacy.machine import Global, MalformedPickle, called
from torch_utils.legacy.tensors import StoredTensor, TensorReader, numpy_dtype

_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_MAX_DEPTH = 32  # of modules inside modules
_MAX_MODULES = 2000  # a generator has about 200; one that contains itself would have no end
_MAX_ENTRIES = 10_000  # of all their tables together; a generator has about 800
_MAX_PLAIN = 10_000  # values of a setting
_DICTIONARIES = (
    "builtins.dict",
    "collections.OrderedDict",
    "dnnlib.EasyDict",
    "dnnlib.util.EasyDict",
)


class PickledModule:
    """A module that was not made: the name of its class, and the attributes that it would have had."""

    def __init__(self, kind: str, attributes: dict[Any, Any], reader: TensorReader) -> None:
        self.kind = kind  # name of its class, without the module
        self.attributes = attributes
        self._reader = reader

    def child(self, name: str) -> PickledModule | None:
        """The submodule of that name."""
        return as_module(self._table("_modules").get(name), self._reader)

    def tensors(self) -> dict[str, StoredTensor]:
        """What ``state_dict()`` would return: parameters and persistent buffers, with dotted names."""
        found: dict[str, StoredTensor] = {}
        modules = entries = 0
        waiting: list[tuple[str, PickledModule, int]] = [("", self, 0)]
        while waiting:
            prefix, module, depth = waiting.pop()
            tables = [module._table(name) for name in ("_parameters", "_buffers", "_modules")]
            modules, entries = modules + 1, entries + sum(map(len, tables))
            if depth > _MAX_DEPTH or modules > _MAX_MODULES or entries > _MAX_ENTRIES:
                raise MalformedPickle("modules inside modules without an end")
            found.update((prefix + name, tensor) for name, tensor in module._own_tensors())
            for name, value in tables[-1].items():
                below = as_module(value, self._reader)
                if below is not None:
                    waiting.append((f"{prefix}{name}.", below, depth + 1))
        if sum(tensor.nbytes for tensor in found.values()) > 2 * self._reader.size:
            raise MalformedPickle("tensors that are larger than the file")
        return found

    def attribute(self, name: str) -> Any:
        """A setting as plain Python values (numbers, texts, lists, dictionaries), or None."""
        return plain(self.attributes.get(name), self._reader)

    def _own_tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        transient = self.attributes.get("_non_persistent_buffers_set")
        skipped = transient if isinstance(transient, set) else set()
        named = [*self._table("_parameters").items()]
        named += [(name, value) for name, value in self._table("_buffers").items() if name not in skipped]
        for name, value in named:
            if value is None:
                continue
            tensor = self._reader.find(value)
            if tensor is None:
                raise MalformedPickle(f"'{name!s:.80}' is no tensor")
            yield str(name), tensor

    def _table(self, name: str) -> dict[Any, Any]:
        return as_dict(self.attributes.get(name)) or {}


def as_module(value: Any, reader: TensorReader) -> PickledModule | None:
    """The module that ``value`` stands for: one of the StyleGAN family's persistent classes, or any other."""
    if not called(value):
        return None
    args = value.args if isinstance(value.args, tuple) else ()
    if called(value) == _PERSISTENT:
        meta = as_dict(args[0]) if args else None
        state = as_dict(meta.get("state")) if meta else None
        kind = meta.get("class_name") if meta else None
    else:
        state = as_dict(value.state)
        kind = (args[0] if args and isinstance(args[0], Global) else value.callee).name
    if state is None or not any(name in state for name in ("_parameters", "_modules")):
        return None
    return PickledModule(kind if isinstance(kind, str) else "", state, reader)


def as_dict(value: Any) -> dict[Any, Any] | None:
    """The dictionary that ``value`` is or stands for."""
    if isinstance(value, dict):
        return value
    if not called(value):
        return None
    made = called(value)
    args = value.args if isinstance(value.args, tuple) else ()
    if made == "copyreg.__newobj__" and args and isinstance(args[0], Global):
        made, args = str(args[0]), args[1:]
    if made not in _DICTIONARIES:
        return None
    items = value.items or {}
    if len(args) != 1 or not isinstance(args[0], list):
        return items
    # OrderedDict([[key, value], ...]), as old protocols write it
    if len(args[0]) > _MAX_ENTRIES:
        raise MalformedPickle("a table with more entries than any model needs")
    pairs = [pair for pair in args[0] if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return {key: item for key, item in pairs if type(key) is str} | items


def plain(value: Any, reader: TensorReader) -> Any:
    """Numbers, texts, lists and dictionaries of them; None in place of everything else."""
    left = _MAX_PLAIN

    def below(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise MalformedPickle("a setting without an end")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [below(item, depth + 1) for item in value]
        table = as_dict(value)
        if table is not None:
            return {key: below(item, depth + 1) for key, item in table.items() if isinstance(key, str)}
        tensor = reader.find(value)
        if tensor is not None:
            return tensor.read().tolist() if tensor.nbytes <= 1024 else None
        return _numpy_scalar(value)

    return below(value, 0)


def _numpy_scalar(value: Any) -> bool | int | float | None:
    if not called(value).endswith("multiarray.scalar"):
        return None
    args = value.args
    kind = numpy_dtype(args[0]) if isinstance(args, tuple) and len(args) == 2 else None
    if kind is None or not isinstance(args[1], memoryview) or len(args[1]) != kind.itemsize:
        return None
    return np.frombuffer(args[1], kind)[0].item()
