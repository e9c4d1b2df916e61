"""What an edit can be told."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from dnnlib.config import check_least, check_share
from dnnlib.errors import UserError, did_you_mean
from training.editing.region import RegionSettings

# Settings of how an edit is computed: they change its rounding, as another device does, not what it is.
OF_COMPUTATION = ("bfloat16", "cuda_graphs")
PROPOSALS = ("blend", "frozen", "union")


@dataclass(frozen=True)
class EditWeights:
    """Weights of the terms that are summed. Distillation terms have latent units, the others those of their
    losses."""

    distillation: float = 0.02  # both distillation gradients together
    geometry: float = 0.3  # share of the normal map's gradient in them; the picture's share is the rest
    mask: float = 1.0  # cross-entropy between the rendered and the requested mask, at M's camera
    image: float = 2.0  # L1 of the picture outside the edit's footprint
    sdf: float = 2.0  # L1 of the learned field's signed distances to the frozen one's, outside the region
    eikonal: float = 0.05  # of the learned field, inside the region
    consistency: float = 1.0  # of the global SDF and the union of the parts, inside the region
    clip: float = 0.0  # 1 - directional CLIP similarity of the views, by the bundled CLIP of portraits

    def __post_init__(self) -> None:
        check_least(self, 0, *(f"weights.{each.name}" for each in fields(self)))
        check_share(self, "weights.geometry")


@dataclass(frozen=True)
class ExportSettings:
    """Sizes of what is written."""

    frames: int = 40  # of the turntable, at 20 a second
    mesh_resolution: int = 128  # grid points along each side of the box

    def __post_init__(self) -> None:
        check_least(self, 1, "export.frames")
        check_least(self, 2, "export.mesh_resolution")


@dataclass(frozen=True)
class EditSettings:
    """One edit."""

    objective: str = "cdgt"  # 'cdgt', 'dds', 'sds' or 'csd', see training.distillation
    steps: int = 200
    guidance: float = 7.5  # s in e = e_0 + s (e_y - e_0)
    first_timestep: float = 0.8  # share of the diffusion steps at which the edit begins ...
    last_timestep: float = 0.02  # ... and to which it falls linearly
    lr: float = 0.001  # Adam's, of the backbone and the decoder
    lr_latent: float = 0.01  # of w
    warmup_steps: int = 10  # the learning rates rise linearly
    views_per_step: int = 2  # the first is M's camera, the others are drawn from the fixed ones
    views: tuple[tuple[float, float], ...] = (  # yaw and pitch of these in radians
        (-0.55, 0.0),
        (-0.3, 0.1),
        (-0.3, -0.1),
        (0.0, 0.15),
        (0.0, -0.15),
        (0.3, 0.1),
        (0.3, -0.1),
        (0.55, 0.0),
    )
    geometry_every: int = 2  # normal maps are distilled, and the eikonal term taken, in every second step
    region_every: int = 20  # steps after which the region is renewed
    update_condition: bool = True  # views' mask conditions follow the model, M's own apart; else the source's
    relevance: float = (
        0.4  # without repainted pixels, where the sentences differ by this share of their most; 0: everywhere
    )
    proposals: str = (
        "blend"  # whose surfaces draw importance samples: 'blend', 'frozen', 'union' of both models
    )
    jitter: bool = False  # random offsets of the ray samples; without, both branches see the same picture
    chunk: int = 8192  # rays that are evaluated at once; gradients recompute them: memory against time
    keep_points: int = 1024  # random points of the box on which the SDFs are kept, per step
    seed: int = 0  # of the diffusion noise, the views and the sampling along rays
    max_nonfinite: int = 10  # steps with non-finite gradients after which the edit stops
    bfloat16: bool = True  # for the prior's predictions, on CPUs that multiply such numbers
    cuda_graphs: bool | None = None  # record steps on CUDA; None: where the prior's latents are small
    weights: EditWeights = field(default_factory=EditWeights)
    region: RegionSettings = field(default_factory=RegionSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    def __post_init__(self) -> None:
        check_least(
            self, 1, "steps", "views_per_step", "geometry_every", "region_every", "chunk", "keep_points"
        )
        check_least(self, 0, "lr", "lr_latent", "guidance", "warmup_steps", "seed", "max_nonfinite")
        if not self.views:
            raise UserError("views is empty: give at least one pair of yaw and pitch")
        if not 1 >= self.first_timestep >= self.last_timestep >= 0:
            raise UserError(
                f"first_timestep and last_timestep are {self.first_timestep} and {self.last_timestep}; they "
                "are shares of the diffusion steps, from 1 down to 0"
            )
        check_share(self, "relevance")
        if self.proposals not in PROPOSALS:
            raise UserError(f"proposals '{self.proposals}': {did_you_mean(self.proposals, PROPOSALS)}")
