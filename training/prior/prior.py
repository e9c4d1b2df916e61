"""A latent diffusion prior: Stable Diffusion 1.5 with a face ControlNet, or the small one trained here.

Conventions: pictures and normal maps are RGB in [-1, 1]; a normal map holds view-space normals (x right,
y up, z to the viewer) as its three channels, background 0. Latents are scaled to about unit variance. ``t``
counts noise levels from 0 (clean) to T - 1: z_t = sqrt(a_t) z + sqrt(1 - a_t) eps, a = ``alphas_cumprod``.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from datasets.labels import LabelSet
from dnnlib.errors import UserError
from training.precision import scaled_gradients
from training.prior.models import NORMAL_PREFIX, PriorParts
from training.prior.vocabulary import Vocabulary


@dataclass(frozen=True)
class PriorPrediction:
    """The noise that the prior sees in N latents, each (N, 4, h, w) float32."""

    conditional: Tensor  # e_y, with the prompt
    unconditional: Tensor | None  # e_0, with the negative prompt; None where no guidance was asked for
    guidance_scale: float | None

    @property
    def direction(self) -> Tensor:
        """d = e_y - e_0."""
        if self.unconditional is None:
            raise ValueError(
                "predict_noise was called with guidance_scale=None: there is no e_0 to compare with"
            )
        return self.conditional - self.unconditional

    @property
    def noise(self) -> Tensor:
        """e = e_0 + s d; without guidance e_y."""
        if self.unconditional is None or self.guidance_scale is None:
            return self.conditional
        return self.unconditional + self.guidance_scale * self.direction


class Prior(nn.Module):
    """A frozen prior. Only :meth:`encode` and :meth:`decode` are differentiable, in their input."""

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel | None,
        scheduler: DDPMScheduler,
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.text_encoder: CLIPTextModel | None = text_encoder
        self.tokenizer = tokenizer
        self.unet = unet
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.vocabulary = vocabulary
        self._kept: dict[str, Tensor] = {}  # embeddings (1, L, D) that outlive the text encoder
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)  # (T,)
        self.requires_grad_(False).eval()

    @property
    def image_size(self) -> int:
        """Side of the pictures it was trained on (Stable Diffusion 1.5: 512, the small prior: 64)."""
        return self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_size(self) -> int:
        return self.unet.config.sample_size

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] to scaled latents (N, 4, h, w) float32: the posterior's mean.

        Another size than ``image_size`` is resized (antialiased) first. Differentiable.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, (self.image_size,) * 2, mode="bilinear", antialias=True)
        mean = scaled_gradients(self._posterior_mean, self.vae.dtype, images)
        return (mean - self._shift) * self.vae.config.scaling_factor

    def _posterior_mean(self, images: Tensor) -> Tensor:
        return self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode().float()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, 4, h, w) to pictures (N, 3, H, W) in about [-1, 1] float32. Differentiable."""
        raw = latents / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float()

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """Prompts to text embeddings (N, L, D). Words that it cannot know are left out, with a warning."""
        if self.text_encoder is None:
            if missing := [prompt for prompt in prompts if prompt not in self._kept]:
                raise ValueError(f"the text encoder has been freed, and {missing[0]!r} was not kept before")
            return torch.cat([self._kept[prompt] for prompt in prompts])
        known = [self.vocabulary.known_part(prompt) for prompt in prompts]
        tokens = self.tokenizer(
            known,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def free_text_encoder(self, kept: tuple[str, ...] = ("", NORMAL_PREFIX)) -> None:
        """Gives its memory back, once all prompts are embedded. Those in ``kept`` can be embedded again."""
        self._kept = dict(zip(kept, self.embed(list(kept)).split(1), strict=True))
        self.text_encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def negative_prompt(self, normals: bool) -> str:
        """What guidance should compare a prompt with.

        The small prior has seen '' mostly with pictures and the bare prefix with normal maps: comparing a
        normal map with '' would mostly push it towards being a normal map.
        """
        return NORMAL_PREFIX if normals and self.vocabulary.words is not None else ""

    def condition(self, masks: Tensor, labels: LabelSet) -> Tensor | None:
        """Class maps (N, H, W) to ControlNet pictures (N, 3, H', H') in [0, 1], palette colours; no gradient.

        None without a ControlNet (with a warning: the masks are not seen then).
        """
        if self.controlnet is None:
            warnings.warn("the prior has no ControlNet and does not see the mask: give one", stacklevel=2)
            return None
        colours = _colours(labels.palette, masks.device)[masks.long()]
        return resize_nearest(colours.permute(0, 3, 1, 2), self.image_size).to(self.device)

    @torch.no_grad()
    def predict_noise(
        self,
        latents_t: Tensor,
        t: Tensor,
        text: Tensor,
        condition: Tensor | None,
        *,
        guidance_scale: float | None,
        negative: Tensor | None = None,
        condition_scale: float = 1.0,
    ) -> PriorPrediction:
        """Predict the noise in ``latents_t`` (N, 4, h, w) at levels ``t`` (N,). Not differentiable.

        text       (N or 1, L, D) embedding of the prompts
        condition  (N or 1, 3, H', H') from :meth:`condition`, shown to both branches; None: no ControlNet
        guidance_scale  s of e = e_0 + s (e_y - e_0); None evaluates e_y alone, at half the cost
        negative   (N or 1, L, D) embedding for e_0, default that of ''
        """
        count = len(latents_t)
        branches = (
            [text] if guidance_scale is None else [text, self.embed([""]) if negative is None else negative]
        )
        embeddings = torch.cat([branch.expand(count, -1, -1) for branch in branches])
        latents_t = latents_t.float().repeat(len(branches), 1, 1, 1)
        latents = latents_t.to(self.dtype)
        levels = t.to(self.device).expand(count).repeat(len(branches))
        residuals: dict[str, Any] = {}
        if condition is not None:
            residuals = self._control(latents, levels, embeddings, condition, condition_scale)
        output = self.unet(latents, levels, embeddings.to(self.dtype), **residuals).sample.float()
        noise = self.as_noise(output, latents_t, levels).chunk(len(branches))
        return PriorPrediction(noise[0], noise[1] if len(noise) > 1 else None, guidance_scale)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(a_t) z + sqrt(1 - a_t) noise, for t (N,)."""
        alpha = self.alphas_cumprod[t.to(self.device)].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        condition: Tensor | None,
        *,
        steps: int = 25,
        guidance: float = 4.0,
        seed: int = 0,
        negative: str | None = None,
    ) -> Tensor:
        """Pictures (N, 3, H, W) in about [-1, 1] by deterministic DDIM; ``condition`` from :meth:`condition`.

        Prompts that begin with NORMAL_PREFIX give normal maps. Guidance 1 needs one evaluation a step.
        """
        text = self.embed(prompts)
        if negative is None:
            negatives = [self.negative_prompt(prompt.startswith(NORMAL_PREFIX)) for prompt in prompts]
        else:
            negatives = [negative] * len(prompts)
        against = self.embed(negatives)
        scheduler = DDIMScheduler.from_config(
            self.scheduler.config, clip_sample=False, set_alpha_to_one=False, prediction_type="epsilon"
        )
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        shape = (len(prompts), self.latent_channels, self.latent_size, self.latent_size)
        latents = torch.randn(shape, generator=generator).to(self.device)
        scale = None if guidance == 1 else guidance
        for t in scheduler.timesteps:
            prediction = self.predict_noise(
                latents, t[None].to(self.device), text, condition, guidance_scale=scale, negative=against
            )
            latents = scheduler.step(prediction.noise, t, latents).prev_sample
        return self.decode(latents)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def _control(
        self, latents: Tensor, levels: Tensor, embeddings: Tensor, condition: Tensor, scale: float
    ) -> dict[str, Any]:
        if self.controlnet is None:
            raise UserError("the prior has no ControlNet to show a mask to: give one, or pass condition=None")
        dtype = next(self.controlnet.parameters()).dtype
        picture = condition.to(self.device, dtype)
        if len(picture) != len(latents):
            picture = picture.repeat(len(latents) // len(picture), 1, 1, 1)
        down, mid = self.controlnet(
            latents.to(dtype),
            levels,
            embeddings.to(dtype),
            picture,
            conditioning_scale=scale,
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": [residual.to(self.dtype) for residual in down],
            "mid_block_additional_residual": mid.to(self.dtype),
        }

    def as_noise(self, output: Tensor, latents: Tensor, levels: Tensor) -> Tensor:
        """The output as a noise prediction; v = sqrt(a) eps - sqrt(1 - a) z (Salimans & Ho 2022)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[levels].view(-1, 1, 1, 1)
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents


@functools.lru_cache(maxsize=8)  # edits want it at every step, which may not copy it to the device
def _colours(palette: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """(P, 3) in [0, 1]."""
    return torch.tensor(palette, dtype=torch.float32, device=device) / 255


def resize_nearest(pictures: Tensor, size: int) -> Tensor:
    """(N, C, H, W) to (N, C, size, size) by nearest neighbours (pixel centres): no new colours."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, (size, size), mode="nearest-exact")


def prior_of(parts: PriorParts) -> Prior:
    """The prior made of ``parts``, sharing their weights (which it freezes)."""
    return Prior(**parts.modules(), tokenizer=parts.tokenizer, scheduler=parts.scheduler,
                 vocabulary=Vocabulary(parts.words))  # fmt: skip
