"""The edited portrait: a frozen scene, a learnable copy of its generator, and the region between them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from training.editing.blending import BlendedField
from training.editing.region import Region
from training.field import Field, TriplaneField
from training.generator import Generator
from training.scene import Scene


class LearnedCopy(nn.Module):
    """The learnable half of an edit: a copy of backbone, decoder and w.

    Super-resolution stays the frozen generator's, with the frozen w: it sees the whole picture, so a learned
    one could not leave the rest of it alone. A learned beta stays as it is too, since it would change every
    density at once.
    """

    def __init__(self, generator: Generator, ws: Tensor) -> None:
        super().__init__()
        self.synthesis = copy.deepcopy(generator.synthesis).requires_grad_(True)
        self.decoder = copy.deepcopy(generator.decoder).requires_grad_(True)
        self.decoder.sigmoid_beta.requires_grad_(False)
        self.ws = nn.Parameter(ws.detach().clone())
        self.config = generator.config

    def forward(self) -> TriplaneField:
        """The learned field of now, one scene."""
        texture, shape = (
            flat.unflatten(1, (3, self.config.plane_channels))
            for flat in self.synthesis(self.ws, noise_mode="const")
        )
        return TriplaneField(
            texture,
            shape,
            self.decoder,
            projection=self.config.plane_projection,
            box_warp=self.config.camera.box_warp,
        )

    def into(self, generator: Generator) -> Generator:
        """A copy of ``generator``, the frozen one, with backbone and decoder replaced by what was learned."""
        whole = copy.deepcopy(generator)
        whole.synthesis.load_state_dict(self.synthesis.state_dict())
        whole.decoder.load_state_dict(self.decoder.state_dict())
        return whole.requires_grad_(False)


@dataclass(frozen=True)
class EditedPortrait:
    """A source scene and what was learned of it."""

    source: Scene
    learned: LearnedCopy
    region: Region

    def scene(self, learned: Field | None = None, *, everywhere: bool = False) -> Scene:
        """The blend; differentiable in the learned half. ``learned`` is a field that the copy made before,
        ``everywhere`` as :class:`BlendedField` has it."""
        learned = self.learned() if learned is None else learned
        field = BlendedField(self.source.field, learned, self.region, everywhere=everywhere)
        return Scene(self.source.generator, self.source.ws, field)
