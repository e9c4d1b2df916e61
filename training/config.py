"""Typed configuration of the generator, the discriminators and a training run.

One dataclass per thing that is configured; every field is explained here and nowhere else. Values come from
``configs/NAME.yaml`` and ``--set a.b=c`` through :func:`dnnlib.config.load`; what ran is saved beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from datasets.labels import label_set
from dnnlib.config import check_above, check_least, check_share
from dnnlib.errors import UserError
from dnnlib.options import LARGEST_SEED

NO_LABELS = "none"  # the ``labels`` of a generator without parts


@dataclass(frozen=True)
class CameraConfig:
    """The camera model that all pictures of a data set share (world units: the box has side ``box_warp``)."""

    focal: float = 4.2647  # focal length divided by the image size
    radius: float = 2.7  # distance of the camera from the world's origin
    pivot: tuple[float, float, float] = (
        0.0,
        0.0,
        0.2,
    )  # point that every camera looks at; cats: (0, 0, -0.06)
    near: float = 2.25  # where rays begin, measured from the camera
    far: float = 3.3  # where rays end
    box_warp: float = 1.0  # side of the cube, centred at the origin, that the planes cover

    def __post_init__(self) -> None:
        check_above(self, 0, *(f"generator.camera.{name}" for name in ("focal", "radius", "box_warp")))
        check_least(self, 0, "generator.camera.near")
        if self.near >= self.far:
            raise UserError(
                f"generator.camera.near is {self.near:g}, far {self.far:g}: rays must begin before they end"
            )


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator. Defaults are those of the published face model."""

    labels: str = "ffhq-mask"  # label set: one local SDF head and mask channel per class; 'none' (EG3D): none
    resolution: int = 512  # side of the final image and mask; = sr_resolution * 2 ** len(sr_channels)
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    plane_resolution: int = 256  # side of the feature planes
    plane_channels: int = 32  # features per plane and point, for texture and for shape alike
    channel_base: int = 32768  # backbone channels at resolution r: min(channel_base / r, channel_max)
    channel_max: int = 512
    decoder_width: int = 64  # hidden units of the texture MLP and of the global SDF MLP
    part_width: int = 64  # hidden units of each local SDF MLP
    feature_channels: int = 32  # colour features that are rendered; the first three are RGB
    plane_projection: str = (
        "orthogonal"  # 'orthogonal' (xy, xz, yz), or 'published' (xy, xz, zx) for published weights
    )
    marching: str = "published"  # 'published' marches softplus(sigma - 1), 'sigma' marches sigma itself
    density: str = "sdf"  # 'sdf', or 'direct': the global head gives 10 minus the density (plain EG3D)
    beta: float = 0.1  # width of the SDF-to-density sigmoid
    learn_beta: bool = False  # published: a fixed buffer
    raw_resolution: int = 128  # side of the volume rendering at inference
    samples_coarse: int = 48  # stratified samples per ray
    samples_fine: int = 48  # importance samples per ray
    sr_resolution: int = 128  # side at which the super-resolution starts (raw pictures are resized to it)
    sr_channels: tuple[int, ...] = (
        256,
        128,
    )  # channels of each super-resolution block; each doubles the side
    backbone_clamp: float | None = None  # bound of the backbone's activations, where it was trained with one
    sr_clamp: float | None = None  # the same of the super-resolution; EG3D's trains with 256
    camera: CameraConfig = field(default_factory=CameraConfig)

    def __post_init__(self) -> None:
        grown = self.sr_resolution * 2 ** len(self.sr_channels)
        if grown != self.resolution:
            raise UserError(
                f"generator.resolution is {self.resolution}, but {len(self.sr_channels)} super-resolution "
                f"blocks from {self.sr_resolution} end at {grown}; change one of the three"
            )
        side = self.plane_resolution
        if side < 4 or side & (side - 1):
            raise UserError(f"generator.plane_resolution is {side}; it must be a power of two, 4 or more")
        widths = ["plane_channels", "channel_max", "decoder_width"]
        if self.labels != NO_LABELS:  # such a generator has no part, of any width
            widths.append("part_width")
        check_least(self, 1, *(f"generator.{name}" for name in widths))
        check_least(self, 1, *(f"generator.{name}" for name in ("z_dim", "w_dim", "mapping_layers")))
        check_least(self, 1, "generator.raw_resolution")
        check_least(self, 0, "generator.samples_fine")
        check_least(self, 4, "generator.samples_coarse")  # importance sampling needs as many
        check_least(self, 3, "generator.feature_channels")  # the colours are among them
        check_above(self, 0, "generator.beta")
        _check_channels("generator", self.channel_base, side)
        if min(self.sr_channels, default=1) < 1:
            raise UserError(f"generator.sr_channels are {list(self.sr_channels)}; each must be 1 or more")
        for name in ("backbone_clamp", "sr_clamp"):
            if getattr(self, name) is not None:
                check_above(self, 0, f"generator.{name}")
        _one_of("generator.plane_projection", self.plane_projection, ("orthogonal", "published"))
        _one_of("generator.marching", self.marching, ("published", "sigma"))
        _one_of("generator.density", self.density, ("sdf", "direct"))

    @property
    def parts(self) -> int:
        """Number P of classes, background included."""
        return 0 if self.labels == NO_LABELS else label_set(self.labels).count


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes that both discriminators share."""

    channel_base: int = 32768
    channel_max: int = 512
    group_size: int = 4  # images over which the batch standard deviation is taken
    pose_conditioned: bool = True  # project the features on the mapped camera label

    def __post_init__(self) -> None:
        check_least(self, 1, "discriminator.channel_max", "discriminator.group_size")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses of method section 3."""

    mask_adversarial: float = 0.1
    mask_sharpness: float = 0.0  # the mask discriminator sees softmaxes of this times the masks; 0: the masks
    mask_colour_blur: float = 0.0  # ... and pictures blurred by this share of their side
    mask_parsing: float = 0.0  # generated pictures, read by a parser of true ones, against their own masks
    mask_parsed: float = 0.0  # ... and their masks against what it reads
    eikonal: float = 0.1
    eikonal_fraction: float = 1.0  # share of the ray samples, drawn at random, on which the gradient is taken
    minimal_surface: float = 0.05
    sdf_consistency: float = 0.1
    density_consistency: float = 1e-4
    part_colour: float = 0.0
    density_regularisation: float = 0.25
    density_regularisation_every: int = 4  # generator steps
    density_regularisation_distance: float = 0.004  # world units
    density_regularisation_points: int = 1000  # random points per image
    gamma: float = 1.0  # R1 weight of the image discriminator
    gamma_mask: float = 10.0  # the same of the mask discriminator, as a multiple of gamma
    r1_every: int = 16  # discriminator steps

    def __post_init__(self) -> None:
        check_least(
            self,
            1,
            "loss.density_regularisation_every",
            "loss.density_regularisation_points",
            "loss.r1_every",
        )
        check_least(self, 0, *(f"loss.{each.name}" for each in fields(self)))
        check_share(self, "loss.eikonal_fraction")
        if self.mask_parsed and not self.mask_parsing:
            raise UserError("loss.mask_parsed needs the parser of loss.mask_parsing: give that a weight too")


@dataclass(frozen=True)
class AugmentConfig:
    """Adaptive discriminator augmentation."""

    mode: str = "none"  # 'none', 'fixed' or 'ada'
    strength: float = 0.2  # probability of each augmentation when fixed
    target: float = 0.6  # sign(D(real)) that ADA steers to
    speed_kimg: float = 500.0  # kimg in which the strength can go from 0 to 1
    interval: int = 4  # steps between two adjustments

    def __post_init__(self) -> None:
        _one_of("augment.mode", self.mode, ("none", "fixed", "ada"))
        check_least(self, 1, "augment.interval")
        check_least(self, 0, "augment.speed_kimg")
        check_share(self, "augment.strength")
        if not -1 <= self.target <= 1:
            raise UserError(f"augment.target is {self.target:g}; it is a mean of signs, from -1 to 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """What changes while training goes on, in thousands of images (kimg)."""

    swap_kimg: float = 1000.0  # conditioning cameras: swap probability fades from 1 to swap_final over this
    swap_final: float = 0.5
    blur_sigma: float = 10.0  # blur of the discriminators' input in pixels at the start (of a 512 px image)
    blur_kimg: float = 200.0  # ... fading to none over this (times batch / 32)
    mask_noise: float = 0.0  # deviation of the noise on all masks that the discriminators see, at the start
    mask_noise_final: float = 0.0  # ... and after mask_noise_kimg; masks lie in [-1, 1]
    mask_noise_kimg: float = 1000.0
    beta: float = 0.0  # the density's beta is halved every beta_kimg until it is this; 0: left alone
    beta_kimg: float = 2.0
    generator_delay_kimg: float = 0.0  # at first only the discriminators learn: a warm start is ahead of them
    grow_kimg: float = (
        0.0  # then, up to here, the finest planes and super-resolutions: a grown generator's new
    )
    raw_resolution: int = 64  # side of the volume rendering at the start
    raw_resolution_final: int = 128
    raw_switch_kimg: float = 22500.0  # when it changes; blended over raw_fade_kimg
    raw_fade_kimg: float = 1000.0

    def __post_init__(self) -> None:
        check_least(self, 1, "schedule.raw_resolution", "schedule.raw_resolution_final")
        check_least(self, 0, *(f"schedule.{each.name}" for each in fields(self)))
        check_share(self, "schedule.swap_final")
        if self.beta and not self.beta_kimg:
            raise UserError("schedule.beta_kimg is 0; beta needs some kimg to fall in")


@dataclass(frozen=True)
class SphereConfig:
    """Phase (a): every SDF head regresses a sphere."""

    steps: int = 500
    batch: int = 4  # latents per step
    points: int = 4096  # random points per latent
    lr: float = 0.0025

    def __post_init__(self) -> None:
        check_least(self, 1, "sphere.batch", "sphere.points")
        check_least(self, 0, "sphere.steps", "sphere.lr")


@dataclass(frozen=True)
class WarmStartConfig:
    """Optional phase between sphere and adversarial training, for synthetic sets with depth and normals: the
    generator learns as the decoder of a variational autoencoder of pictures, masks and surfaces."""

    kimg: float = 0.0  # 0: off, the purely adversarial recipe of the paper
    batch: int = 8
    lr: float = 0.0025
    lr_encoder: float = 0.001
    encoder_kimg: float = 0.0  # only the encoder learns at first, latents that a trained generator knows
    dreams: float = 0.0  # weight, meanwhile, of what it reads in pictures of random latents
    encoder: str = ""  # file of an encoder to begin with, such as the encoder.safetensors of a run
    encoder_resolution: int = 0  # larger pictures are reduced to this side for it; 0: the generator's side
    encoder_width: int = (
        32  # channels of the encoder's first convolution; each doubles them, up to the maximum
    )
    encoder_width_max: int = 128
    beta: float = 0.0  # beta falls to this over the first beta_kimg; 0: left alone
    beta_kimg: float = 5.0
    divergence: float = 5e-4  # weight of the latents' divergence from the standard normal, in nats
    whiten_kimg: float = 0.0  # so often, and at the end, latents together are made standard normal; 0: never
    aggregate: float = 0.0  # weight of all latents' distance from the standard normal, beside adversaries
    image: float = 1.0  # weight of the L1 of image and raw image
    perceptual: float = 0.0  # weight of the multi-scale gradient difference
    hue: float = 0.0  # weight of the L1 of hues over cells of 4 x 4 pixels
    mask: float = 0.5  # weight of the cross-entropy of mask and raw mask
    balance: float = 0.0  # pixels of rare classes count more: share of a class to the power of minus this
    depth: float = 2.0  # weight of the L1 of the depth, foreground only
    normals: float = 0.2  # weight of the L1 of the normals, foreground only
    keep: float = 0.0  # share of each adversarial batch whose latents are encoded pictures, to be matched ...
    keep_weight: float = 1.0  # ... with this weight on all of the above, beside the adversarial losses
    keep_features: float = 0.0  # weight of their distance in the features of the image discriminator

    def __post_init__(self) -> None:
        check_least(self, 1, "warm_start.batch", "warm_start.encoder_width", "warm_start.encoder_width_max")
        check_least(self, 0, *(f"warm_start.{each.name}" for each in fields(self) if each.name != "encoder"))
        side = self.encoder_resolution
        if side and (side < 4 or side & (side - 1)):
            raise UserError(
                f"warm_start.encoder_resolution is {side}; it must be a power of two from 4 on, or 0"
            )
        if self.beta and self.beta_kimg <= 0:
            raise UserError(f"warm_start.beta_kimg is {self.beta_kimg}; beta needs some kimg to fall in")
        check_share(self, "warm_start.keep")  # of the batch


@dataclass(frozen=True)
class ParserConfig:
    """The network behind ``loss.mask_parsing``: it learns masks from the true pictures of the adversarial
    phase."""

    resolution: int = 128  # larger pictures are reduced to this side
    widths: tuple[int, ...] = (32, 64, 96)  # channels at a half, a quarter and an eighth of it
    groups: int = 8  # of the group normalisation; divides every one of widths
    lr: float = 0.001
    warm_up_kimg: float = 4.0  # the loss's weight grows from 0 while the parser sees so many true pictures

    def __post_init__(self) -> None:
        check_least(self, 1, "parser.groups")
        check_least(self, 0, "parser.lr", "parser.warm_up_kimg")
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"parser.widths are {list(self.widths)}; give one or more, each 1 or more")
        if any(width % self.groups for width in self.widths):
            raise UserError(f"parser.groups is {self.groups}, which must divide all of parser.widths")
        halvings = 2 ** len(self.widths)
        if self.resolution < 1 or self.resolution % halvings:
            raise UserError(
                f"parser.resolution is {self.resolution}; it is halved for each of parser.widths, so it must "
                f"be a multiple of {halvings}"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from. Empty paths: the command line must give them."""

    images: str = ""  # folder or zip of images with dataset.json, or a portrait-set folder
    masks: str = ""  # folder or zip of masks; found beside the images of a portrait set
    mirror: bool = True  # add the mirror image of every picture (image, mask classes and camera)
    cache: bool = False  # keep decoded pictures in memory
    workers: int = 2

    def __post_init__(self) -> None:
        check_least(self, 0, "data.workers")


@dataclass(frozen=True)
class TrainConfig:
    """One training run of the generator."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sphere: SphereConfig = field(default_factory=SphereConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    parser: ParserConfig = field(default_factory=ParserConfig)
    data: DataConfig = field(default_factory=DataConfig)
    kimg: float = 25000.0  # length of the adversarial phase
    batch: int = 32  # images per step over all processes
    checkpointing: bool = (
        False  # the generator's step recomputes super-resolution and discriminators backwards
    )
    ray_chunk: int = (
        0  # rays of a pass that are evaluated at once, and again for the gradients; 0: all, and only once
    )
    batch_per_pass: int = 0  # images per forward pass and process (gradients accumulate); 0: all at once
    lr_generator: float = 0.0025
    lr_discriminator: float = 0.002
    adam_betas: tuple[float, float] = (0.0, 0.99)
    ema_kimg: float = 10.0  # half-life of the generator average at batch 32; scaled by batch / 32
    ema_rampup: float = 0.05  # the half-life is at most this share of what has been trained
    mixed_precision: bool = True  # float16 in the high resolutions, on CUDA only
    cuda_graphs: bool = False  # on CUDA, steps are recorded and replayed: for networks of few FLOPs
    seed: int = 0
    log_kimg: float = 1.0  # learning curves
    image_kimg: float = 10.0  # grids of image, mask, normals and depth
    snapshot_kimg: float = 50.0  # resumable state and generator
    metrics_kimg: float = 0.0  # scores of evaluate.py quality among the curves; 0: never
    max_nonfinite: int = 10  # steps with non-finite gradients after which the run stops

    def __post_init__(self) -> None:
        if not self.generator.parts:
            raise UserError(
                f"generator.labels is '{NO_LABELS}': a generator without classes comes from published "
                "weights and cannot be trained here; give a label set, as ffhq-mask"
            )
        _check_channels("discriminator", self.discriminator.channel_base, self.generator.resolution)
        if self.seed > LARGEST_SEED:
            raise UserError(f"seed is {self.seed}; it must be {LARGEST_SEED} or less")
        check_least(self, 1, "batch")
        counts = (
            "kimg",
            "ray_chunk",
            "batch_per_pass",
            "lr_generator",
            "lr_discriminator",
            "ema_kimg",
            "ema_rampup",
            "seed",
        )
        intervals = ("log_kimg", "image_kimg", "snapshot_kimg", "metrics_kimg", "max_nonfinite")
        check_least(self, 0, *counts, *intervals)
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise UserError(f"adam_betas are {self.adam_betas}; both must be from 0 to below 1")


def _check_channels(section: str, base: int, side: int) -> None:
    """That ``base / side`` channels are at least one."""
    if base < side:
        raise UserError(
            f"{section}.channel_base is {base}; divided by the {side} pixels of the largest side it gives "
            f"less than one channel: give {side} or more"
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is '{value}'; it must be one of {', '.join(allowed)}")
