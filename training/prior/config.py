"""Typed configuration of the small prior and of its training.

One dataclass per thing that is configured; every field is explained here and nowhere else. Values come from
``train_prior.py`` options, a saved ``config.json`` and ``--set a.b=c`` through :func:`dnnlib.config.load`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnlib.errors import UserError


@dataclass(frozen=True)
class OptimiserConfig:
    """How one stage is trained. Learning rate: linear warm-up, then a cosine down to nothing."""

    kimg: float = 45.0  # length of the stage in thousands of pictures
    batch: int = 32  # pictures per step
    lr: float = 1e-3  # largest learning rate (AdamW)
    warmup: int = 100  # steps of linear warm-up
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    ema_kimg: float = 2.0  # half-life of the averaged weights; at most a tenth of what has been trained

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"optimiser.batch is {self.batch}; a step needs at least one picture")
        if self.lr <= 0:
            raise UserError(f"optimiser.lr is {self.lr}; it must be positive")
        if self.kimg < 0:
            raise UserError(f"optimiser.kimg is {self.kimg}; it cannot be negative")


@dataclass(frozen=True)
class AutoencoderOptimiserConfig(OptimiserConfig):
    """The same with the autoencoder's defaults."""

    kimg: float = 14.0  # 0: the autoencoder stays as it is
    batch: int = 8
    lr: float = 2e-3
    ema_kimg: float = 0.5


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and losses of the AutoencoderKL. A picture shrinks by 2 ** (len(channels) - 1)."""

    channels: tuple[int, ...] = (24, 48, 96)  # per level, finest first; three levels: 64 px -> 16x16 latents
    layers: int = 1  # residual blocks per level (the decoder has one more)
    groups: int = 8  # of the group normalisation; divides every entry of channels
    latent_channels: int = 4
    kl: float = 1e-5  # weight of the KL divergence, per latent number; the L1 is per pixel and has weight 1
    gradient: float = 1.0  # weight of the multi-scale gradient difference, which keeps edges sharp
    hue: float = 3.0  # weight of the hue difference over the cells of one latent
    scales: int = 3  # of the gradient difference, each half the size of the one before
    normals_share: float = 0.33  # share of normal maps among the pictures
    time_share: float = 0.36  # of --minutes, when that is given and the autoencoder is trained
    optimiser: AutoencoderOptimiserConfig = field(default_factory=AutoencoderOptimiserConfig)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the CLIPTextModel."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    length: int = 40  # tokens per prompt, start and end included; longer prompts are cut


@dataclass(frozen=True)
class DiffusionConfig:
    """Sizes and training of UNet2DConditionModel and ControlNetModel."""

    channels: tuple[int, ...] = (64, 128, 192)  # per level, finest first
    attention: tuple[bool, ...] = (False, True, True)  # whether the level attends to itself and to the text
    layers: int = 1  # blocks per level (one more on the way up)
    heads: int = 4
    groups: int = 16  # of the group normalisation; divides every entry of channels
    condition_channels: tuple[int, ...] = (
        8,
        24,
        48,
    )  # of the mask's embedding: as many as the VAE has levels
    timesteps: int = 1000
    beta_start: float = 0.00085  # noise schedule 'scaled_linear', that of Stable Diffusion
    beta_end: float = 0.012
    normals_share: float = 0.4  # share of normal maps among the pictures
    drop_caption: float = 0.12  # captions left out, for classifier-free guidance
    drop_mask: float = 0.1  # masks left out: the UNet runs without the ControlNet
    coarse_mask: float = 0.2  # masks shown at half their resolution: painted and rendered ones are not exact
    min_snr: float = 5.0  # loss weight min(snr, min_snr) / snr (Hang et al. 2023, eps prediction)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)


@dataclass(frozen=True)
class PriorConfig:
    """One training run of the small prior."""

    data: str = ""  # folder or zip of a portrait set: images, masks, normals, captions
    labels: str = "ffhq-mask"
    resolution: int = 64  # side of the pictures
    smooth_classes: tuple[str, ...] = ("hair",)  # classes whose normals are smoothed: strands have no surface
    smooth_radius: int = 2  # pixels; over squares of side 2 radius + 1
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    seed: int = 0
    retold: int = 0  # further captions of each picture, told from its attributes/; half of them are brief
    rare: float = 0.0  # pictures are drawn by the share of those with their rarest word, to minus this
    favoured: tuple[str, ...] = ()  # words whose pictures are drawn ``favour`` times as often
    favour: float = 3.0  # hats are few, so that the colours of hats are learned last
    workers: int = 2  # processes that read the data set at the start
    minutes: float = (
        0.0  # stop cleanly after so much training; learning rates end at nothing then. 0: no limit
    )
    log_kimg: float = 0.5  # learning curves
    image_kimg: float = 20.0  # sample grids
    snapshot_kimg: float = 5.0  # resumable state
    grid_masks: int = 8  # rows of the sample grids
    grid_steps: int = 25  # DDIM steps of the sample grids
    grid_prompts: tuple[
        str, ...
    ] = (  # columns of the grid that shows what words do, on the same masks and noise
        "a woman with black hair",
        "a woman with blond hair",
        "a woman with red hair",
        "a man with brown hair",
        "an old man with white hair",
        "a person with blue hair",
        "a man with black hair wearing a green shirt",
        "a woman with blond hair wearing a red hat",
    )

    def __post_init__(self) -> None:
        if self.favour <= 0:
            raise UserError(f"favour is {self.favour}; it must be positive")
        vae, unet = self.autoencoder, self.diffusion
        levels = len(vae.channels)
        if len(unet.condition_channels) != levels:
            raise UserError(
                f"diffusion.condition_channels has {len(unet.condition_channels)} entries and "
                f"autoencoder.channels {levels}: the mask must shrink as the pictures do, so give as many"
            )
        if len(unet.attention) != len(unet.channels):
            raise UserError(
                f"diffusion.attention has {len(unet.attention)} entries for {len(unet.channels)} channels: "
                "give one per level"
            )
        for name, channels, groups in (
            ("autoencoder", vae.channels, vae.groups),
            ("diffusion", unet.channels, unet.groups),
        ):
            if any(c % groups for c in channels):
                raise UserError(
                    f"{name}.groups is {groups}, which must divide every one of {name}.channels {channels}"
                )
        smallest = 2 ** (levels - 1) * 2 ** (len(unet.channels) - 1)
        if self.resolution % smallest:
            raise UserError(
                f"resolution is {self.resolution}; with these levels it must be a multiple of {smallest}"
            )

    @property
    def latent_size(self) -> int:
        """Side of the latents."""
        return self.resolution // 2 ** (len(self.autoencoder.channels) - 1)


@dataclass(frozen=True)
class ControlNetOptimiserConfig(OptimiserConfig):
    """The same with the defaults of a ControlNet for a trained diffusion model."""

    kimg: float = 400.0
    batch: int = 8
    lr: float = 1e-5
    warmup: int = 500


@dataclass(frozen=True)
class ControlNetConfig:
    """One training run of a mask ControlNet for a diffusion model that stays as it is."""

    data: str = ""  # folder or zip with images/, masks/ and dataset.json, or of images alone
    masks: str = ""  # folder or zip of the masks, when ``data`` has images alone
    labels: str = "ffhq-mask"  # its palette is what the ControlNet is shown
    caption: str = "a portrait of a person"  # of pictures that have none in dataset.json
    drop_caption: float = 0.5  # captions left out: the mask must then tell what there is
    coarse_mask: float = 0.2  # masks shown at half their resolution: painted and rendered ones are not exact
    min_snr: float = 5.0  # loss weight min(snr, min_snr) / snr; 0: all levels weigh the same
    mirror: bool = True  # add the mirror image of every picture
    checkpointing: bool = False  # recompute activations in the backward pass: half the memory, more time
    optimiser: ControlNetOptimiserConfig = field(default_factory=ControlNetOptimiserConfig)
    seed: int = 0
    workers: int = 4  # threads that decode pictures
    minutes: float = (
        0.0  # stop cleanly after so much training; the learning rate ends at nothing. 0: no limit
    )
    log_kimg: float = 0.5  # learning curves
    image_kimg: float = 20.0  # sample grids
    snapshot_kimg: float = 10.0  # resumable state
    grid_masks: int = 4  # rows of the sample grids
    grid_steps: int = 25  # DDIM steps of the sample grids
