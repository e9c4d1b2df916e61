"""Latents from files: what an edit starts from when it is not a seed.

A latent file is an ``.npz`` with one of

    ws (num_ws, w_dim)    one w per layer, as an edit's ``latent.npz`` has it; that also has ws_edited,
                          which belongs to the generator that the edit learned
    w  (w_dim,)           one w for all layers, as projectors of the StyleGAN family write it
    z  (z_dim,)           before the mapping network

each with or without a leading 1. :mod:`training.editing.inversion` makes one for a picture; any other
projector that writes such a file will do.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from training.generator import Generator
from training.scene import device_of, ws_of_latent


def load_latent(
    path: Path | str, generator: Generator, truncation: float, *, of_edit: bool = False
) -> Tensor:
    """ws (1, num_ws, w_dim) of a latent file. ``truncation`` applies to a z only; a w is taken as it is.

    ``of_edit``: the generator is one that an edit learned, for which an edit's file has a w of its own.
    """
    arrays = read_arrays(path)
    if of_edit and "ws_edited" in arrays:
        arrays["ws"] = arrays["ws_edited"]
    shapes = {
        "ws": (generator.synthesis.num_ws, generator.config.w_dim),
        "w": (generator.config.w_dim,),
        "z": (generator.config.z_dim,),
    }
    for name, shape in shapes.items():
        if name in arrays:
            value = _shaped(arrays[name], name, shape, path).to(device_of(generator))
            if name == "z":
                return ws_of_latent(generator, value[None], truncation)
            return value[None] if name == "ws" else value.expand(1, shapes["ws"][0], -1).clone()
    held = ", ".join(sorted(arrays)) or "nothing"
    raise UserError(f"{path}: no latent named ws, w or z in this file (it holds {held})")


def save_latent(path: Path | str, **arrays: Tensor | np.ndarray) -> None:
    """Writes an ``.npz`` atomically."""
    plain = {n: v.detach().cpu().numpy() if isinstance(v, Tensor) else v for n, v in arrays.items()}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **plain)


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``; whatever else it is, is a UserError. Pickled objects are not read."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f"{path}: expected an .npz file with an array named ws, w or z")
        with file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(f"cannot read the latent {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path} is not an .npz file of numbers, or is damaged") from error


def _shaped(array: np.ndarray, name: str, shape: tuple[int, ...], path: Path | str) -> Tensor:
    squeezed = array[0] if array.ndim == len(shape) + 1 and array.shape[0] == 1 else array
    if squeezed.shape != shape or squeezed.dtype.kind != "f" or not np.isfinite(squeezed).all():
        found = f"{name} is {array.dtype} {array.shape}"
        raise UserError(f"{path}: {found}; this network needs finite floats of shape {shape}")
    return torch.from_numpy(squeezed.astype(np.float32))
