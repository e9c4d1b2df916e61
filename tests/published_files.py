"""Pickles in the published format for the tests; the source text in them ends the program if it runs."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny_generator import TINY_GENERATOR
from training.config import GeneratorConfig
from training.generator import Generator
from training.networks.decoder import SURFACE_DENSITY
from training.published import published_tensors

SOURCE = "raise SystemExit('embedded source must never run')\n"
BUFFERS = ("resample_filter", "noise_const", "w_avg", "sigmoid_beta")
SMALL = replace(
    TINY_GENERATOR, labels="catmask-hq", z_dim=6, plane_projection="published", marching="published"
)
RENDERING = {
    "clamp_mode": "softplus",
    "disparity_space_sampling": False,
    "superresolution_noise_mode": "none",
    "c_gen_conditioning_zero": False,
    "c_scale": 1,
    "decoder_lr_mul": 1,
    "depth_resolution": 6,
    "depth_resolution_importance": 4,
    "ray_start": 2.25,
    "ray_end": 3.3,
    "box_warp": 1,
    "avg_camera_radius": 2.7,
    "avg_camera_pivot": [0, 0, 0.2],
}


class EasyDict(dict):
    """Pickled under the published name."""


class Persistent:
    """Pickled as an object of a class that travels with its source text."""

    def __init__(self, kind: str, state: dict[str, Any]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.kind}
        return _reconstruct_persistent_obj, (EasyDict({**meta, "state": self.state}),)


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise SystemExit("this must never run")


@contextmanager
def published_module_names() -> Iterator[None]:
    """Lets pickle find these classes under the names that published files use."""
    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    before = {name: sys.modules.get(name) for name in names}
    for name, value in names.items():
        module = types.ModuleType(name)
        setattr(module, value.__name__, value)
        value.__module__ = name
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def tree(tensors: Mapping[str, Tensor], kind: str = "Module", **attributes: Any) -> Persistent:
    """Modules inside modules that hold ``tensors`` under their dotted names."""
    state: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": OrderedDict(), **attributes}
    below: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        if dot:
            below.setdefault(first, {})[rest] = tensor
        elif first in BUFFERS:
            state["_buffers"][first] = tensor
        else:
            state["_parameters"][first] = torch.nn.Parameter(tensor, requires_grad=False)
    state["_modules"].update((name, tree(inner)) for name, inner in below.items())
    return Persistent(kind, state)


def dump(value: Any, protocol: int = 4) -> bytes:
    with published_module_names():
        return pickle.dumps(value, protocol)


def write_mate3d(path: Path, seed: int = 0, config: GeneratorConfig = SMALL, **rendering: Any) -> Generator:
    """A random MaTe3D generator as its authors would have pickled it; returns ours."""
    torch.manual_seed(seed)
    generator = Generator(config).eval().requires_grad_(False)
    generator.mapping.w_avg.normal_()
    write_tensors(path, published_tensors(generator), **rendering)
    return generator


def write_eg3d(path: Path, seed: int = 0, **rendering: Any) -> dict[str, Tensor]:
    """A random plain EG3D generator; returns its tensors under EG3D's names."""
    torch.manual_seed(seed)
    tensors = published_tensors(Generator(SMALL))
    kept = {name: t for name, t in tensors.items() if "semantic" not in name and "decoder" not in name}
    planes = {name.replace("torgb_tex", "torgb"): t for name, t in kept.items() if "torgb_shp" not in name}
    width, channels = SMALL.decoder_width, SMALL.plane_channels
    decoder = {
        "net.0.weight": 20 * torch.randn(width, channels),
        "net.0.bias": torch.randn(width),
        "net.2.weight": 4 * torch.randn(1 + SMALL.feature_channels, width),
        "net.2.bias": torch.randn(1 + SMALL.feature_channels) + SURFACE_DENSITY,  # a surface somewhere
    }
    eg3d = planes | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    write_tensors(path, eg3d, **rendering)
    return eg3d


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **rendering: Any) -> None:
    """A pickle as training leaves it, with only the averaged generator in it."""
    module = as_module(tensors, **rendering)
    path.write_bytes(dump({"training_set_kwargs": EasyDict(), "G": None, "D": None, "G_ema": module}))


def as_module(tensors: Mapping[str, Tensor], **rendering: Any) -> Persistent:
    """A generator with these tensors; ``rendering`` changes its settings."""
    return tree(
        tensors,
        "TriPlaneGenerator",
        neural_rendering_resolution=SMALL.raw_resolution,
        rendering_kwargs=EasyDict({**RENDERING, **rendering}),
    )
