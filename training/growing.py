"""A generator that begins as a smaller one: the same scenes on finer planes, at a larger side.

What both have is copied. A finer backbone's new blocks begin by adding nothing to the planes of the blocks
below them, which come through up-sampled, as Karras et al. 2018 (progressive growing) blend new resolutions
in: random latents show the same people before and after.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from training.generator import Generator
from training.updates import frozen

_BLOCK = re.compile(r"synthesis\.b(\d+)\.")
_NOISE = ".noise_const"  # as large as what it is added to, and random to begin with


@torch.no_grad()
def grow(generator: Generator, tensors: dict[str, Tensor]) -> None:
    """Gives ``generator`` the weights ``tensors`` of another one (its ``state_dict``), of which its backbone
    may be a continuation to finer planes and its pictures may be larger.

    Raises RuntimeError, as ``load_state_dict`` does, where they differ in anything else.
    """
    own = generator.state_dict()
    finest = max(map(_plane_resolution, tensors), default=0)
    missing = set(own) - set(tensors)
    new = {name for name in missing if _plane_resolution(name) > finest}
    resized = {
        name
        for name in set(own) & set(tensors)
        if name.endswith(_NOISE) and own[name].shape != tensors[name].shape
    }
    generator.load_state_dict(tensors | {name: own[name] for name in new | resized})
    for name in {".".join(name.split(".")[:2]) for name in new}:
        block = generator.get_submodule(name)
        for layer in (block.torgb_tex, block.torgb_shp):
            layer.weight.zero_()


def coarse_parts_frozen(generator: Generator) -> AbstractContextManager[None]:
    """No gradients for what a smaller generator has too: the mapping, the heads, and all blocks of the
    backbone but the finest. Super-resolutions learn, for the pictures that they enlarge are new to them.

    New discriminators know nothing but coarse differences at first, and push all people the same way.
    """
    synthesis = generator.synthesis
    blocks = [getattr(synthesis, f"b{resolution}") for resolution in synthesis.resolutions[:-1]]
    return frozen(generator.mapping, generator.decoder, *blocks)


def _plane_resolution(name: str) -> int:
    """Of the backbone's block that a tensor belongs to; 0 for all others."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else 0
