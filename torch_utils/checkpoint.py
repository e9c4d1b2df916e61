"""Checkpoints: tensors in a safetensors file, everything else as JSON. Nothing here can run code when read.

The JSON travels inside the safetensors header, so that a checkpoint is one file that is either whole or
absent; a readable copy lies beside it under the same name with ``.json``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import atomic_path, check_writable, parse_json, read_json, write_json

_META = "meta"  # key of our JSON in the safetensors header


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``meta`` (anything JSON can hold) to ``path`` (.safetensors), atomically."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint ends in .safetensors, not '{path.suffix}'")
    text = json.dumps(meta)
    with atomic_path(path) as temporary, _writing(path):
        save_file(_independent(tensors), temporary, metadata={_META: text})
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors writes files that only their owner can read
    write_json(path.with_suffix(".json"), meta)


def check_name(path: str | os.PathLike[str]) -> None:
    """UserError where a checkpoint could not be written to ``path``: to be asked before the work that it is
    to keep."""
    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path}: give a name that ends in .safetensors")
    check_writable(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, which safetensors has an error of its own for."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``(tensors, meta)``; a file that is missing, cut short or of another kind is a UserError."""
    with _opened(path, device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, _meta(file, Path(path))


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON part only."""
    with _opened(path, "cpu") as file:
        return _meta(file, Path(path))


def flatten(nested: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into tensors and a JSON structure that :func:`unflatten` puts together again.

    ``nested`` is built of dicts (any scalar keys), lists, tuples, tensors, numpy arrays and scalars, bytes,
    numbers, strings, booleans and None: optimiser state dicts and random generators' states are. Tensors are
    named by their path, as ``state/0/exp_avg``, and share the memory of those in ``nested``.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(nested, "", tensors)


def unflatten(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Inverse of :func:`flatten`; ``tensors`` may hold others besides."""
    if not isinstance(structure, dict):
        return structure
    (kind, value), *_ = structure.items()
    if kind == "dict":
        return {unflatten(tensors, k): unflatten(tensors, v) for k, v in value}
    if kind == "list":
        return [unflatten(tensors, item) for item in value]
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in value)
    if kind == "float":
        return float(value)
    if kind in ("tensor", "array", "bytes"):
        if value not in tensors:
            raise UserError(
                f"the checkpoint lacks the tensor '{value}' that its structure names: save it again"
            )
        tensor = tensors[value]
        if kind == "tensor":
            return tensor
        array = tensor.detach().cpu().numpy()
        return array if kind == "array" else array.tobytes()
    raise UserError(f"the checkpoint holds a '{kind}', which this version does not know: update the project")


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    def below(name: Any, item: Any) -> Any:
        return _flatten(item, f"{path}/{name}" if path else str(name), tensors)

    def stored(kind: str, tensor: Tensor) -> dict[str, str]:
        name = path or "value"
        while name in tensors:  # the keys 1 and '1' of one dict have the same path
            name += "'"
        tensors[name] = tensor.detach()
        return {kind: name}

    if isinstance(value, Tensor):
        return stored("tensor", value)
    if isinstance(value, np.ndarray):
        return stored("array", torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape))
    if isinstance(value, bytes):
        return stored(
            "bytes", torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0)
        )
    if isinstance(value, Mapping):
        return {"dict": [[below("", k), below(k, v)] for k, v in value.items()]}
    if isinstance(value, list):
        return {"list": [below(i, item) for i, item in enumerate(value)]}
    if isinstance(value, tuple):
        return {"tuple": [below(i, item) for i, item in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON knows no infinity
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} at '{path}' in a checkpoint")


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where tensors share memory, which safetensors refuses to write."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.nbytes
        if (storage.data_ptr() in seen and tensor.numel()) or not whole:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _opened(path: str | os.PathLike[str], device: str | torch.device) -> Any:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: check the path, it ends in .safetensors")
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}): copy or save it again"
        ) from error


def _meta(file: Any, path: Path) -> dict[str, Any]:
    header = file.metadata() or {}
    beside = path.with_suffix(".json")  # of a file that another program wrote
    if _META in header:
        meta = parse_json(header[_META].encode(), f"the header of {path}")
    else:
        meta = read_json(beside) if beside.is_file() else {}
    if not isinstance(meta, dict):
        raise UserError(f"{path} says of itself {meta!r:.40}, not 'key: value' pairs: copy or save it again")
    return meta


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
