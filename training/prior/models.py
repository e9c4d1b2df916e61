"""The parts of a small prior, made of the classes of diffusers and transformers, and its folder on disk.

The folder is the one that ``StableDiffusionControlNetPipeline.from_pretrained`` opens, with one more file,
``prior.json``, in which this project finds the vocabulary, the label set and how the prior was trained.
"""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dnnlib import config as config_files
from dnnlib.files import make_folder, write_json
from training.prior.config import PriorConfig
from training.prior.vocabulary import build_tokenizer, save_tokenizer, split_words

NORMAL_PREFIX = "a normal map of"  # marks the prompt of a view-space normal map
FORMAT = "mate3d-prior-1"
PRIOR_FILE = "prior.json"


@dataclass(frozen=True)
class PriorParts:
    """What a prior is made of. ``words`` are all words of the captions."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    scheduler: DDPMScheduler
    words: tuple[str, ...]

    def modules(self) -> dict[str, nn.Module]:
        """The parts with weights, by the name of their folder."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "unet": self.unet,
            "controlnet": self.controlnet,
        }


def words_of(captions: list[str]) -> tuple[str, ...]:
    """The vocabulary that ``captions`` need, with the words that mark a normal map."""
    return tuple(sorted({word for text in [NORMAL_PREFIX, *captions] for word in split_words(text)}))


def build_parts(config: PriorConfig, words: tuple[str, ...]) -> PriorParts:
    """Untrained parts, initialised from ``config.seed``."""
    tokenizer = build_tokenizer(words, config.text.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        parts = PriorParts(
            vae=_autoencoder(config),
            text_encoder=_text_encoder(config, tokenizer),
            tokenizer=tokenizer,
            unet=_unet(config),
            controlnet=_controlnet(config),
            scheduler=_scheduler(config),
            words=words,
        )
        for module in (parts.vae, parts.unet, parts.controlnet):
            _start_as_identity(module)
        return parts


def save_parts(parts: PriorParts, folder: Path, config: PriorConfig, facts: dict[str, Any]) -> None:
    """Write the diffusers folder, complete or not at all; ``facts`` go into prior.json for the reader.

    Weights are float16, which halves the file and is exact enough for weights. Only the tiny text encoder
    stays float32: transformers loads a model in the precision of its file, and the pipeline would mix both.
    """
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        for name, module in parts.modules().items():
            kept = copy.deepcopy(module).cpu()
            kept = kept if name == "text_encoder" else kept.half()
            kept.save_pretrained(temporary / name)
        parts.scheduler.save_pretrained(temporary / "scheduler")
        save_tokenizer(parts.tokenizer, parts.words, temporary / "tokenizer")
        write_json(temporary / "model_index.json", _index())
        own = {"format": FORMAT, "labels": config.labels, "normal_maps": True, "words": list(parts.words)}
        write_json(temporary / PRIOR_FILE, {**own, **facts, "config": config_files.to_dict(config)})
        old = temporary.with_name(temporary.name + ".old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _index() -> dict[str, Any]:
    """model_index.json: which class reads which subfolder."""
    return {
        "_class_name": "StableDiffusionControlNetPipeline",
        "_diffusers_version": diffusers.__version__,
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "controlnet": ["diffusers", "ControlNetModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


def _start_as_identity(module: nn.Module) -> None:
    """Silence the last convolution of every residual block, so that a deep network learns like a shallow one
    at first (Ho et al. 2020 and their successors start so; the classes of diffusers do not).
    """
    for block in module.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)


def _autoencoder(config: PriorConfig) -> AutoencoderKL:
    vae = config.autoencoder
    levels = len(vae.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=vae.channels,
        layers_per_block=vae.layers,
        norm_num_groups=vae.groups,
        latent_channels=vae.latent_channels,
        sample_size=config.resolution,
        mid_block_add_attention=False,  # pictures this small do not need it, and gradients stay local
    )


def _text_encoder(config: PriorConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    text = config.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            projection_dim=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            max_position_embeddings=text.length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _unet(config: PriorConfig) -> UNet2DConditionModel:
    unet = config.diffusion
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.autoencoder.latent_channels,
        out_channels=config.autoencoder.latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in unet.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in unet.attention[::-1]),
        block_out_channels=unet.channels,
        layers_per_block=unet.layers,
        norm_num_groups=unet.groups,
        cross_attention_dim=config.text.width,
        attention_head_dim=unet.heads,  # the number of heads: an old misnomer in diffusers
    )


def _controlnet(config: PriorConfig) -> ControlNetModel:
    """Without attention: the mask says where, the UNet's own attention says what.

    The interface is the usual one, but not the start: its zero convolutions protect a trained UNet, and here
    both learn together, so they start small instead, and the mask is followed from the first steps.
    """
    unet = config.diffusion
    controlnet = ControlNetModel(
        in_channels=config.autoencoder.latent_channels,
        down_block_types=("DownBlock2D",) * len(unet.channels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=unet.channels,
        layers_per_block=unet.layers,
        norm_num_groups=unet.groups,
        cross_attention_dim=config.text.width,
        attention_head_dim=unet.heads,
        conditioning_embedding_out_channels=unet.condition_channels,
    )
    outputs = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [controlnet.controlnet_cond_embedding.conv_out, *outputs]:
        nn.init.normal_(convolution.weight, std=0.5 / convolution.weight[0].numel() ** 0.5)
    return controlnet


def _scheduler(config: PriorConfig) -> DDPMScheduler:
    unet = config.diffusion
    return DDPMScheduler(
        num_train_timesteps=unet.timesteps,
        beta_start=unet.beta_start,
        beta_end=unet.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
