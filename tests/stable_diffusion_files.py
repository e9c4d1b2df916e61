"""Stable Diffusion 1.5's standard folder and a ControlNet's, randomly initialised and tiny."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from training.prior.vocabulary import build_tokenizer


def write_stable_diffusion(parent: Path, side: int = 64) -> tuple[Path, Path]:
    """The folders of the model (pictures of ``side`` pixels) and of the ControlNet, in ``parent``."""
    folder, control = parent / "sd", parent / "faces"
    tokenizer = build_tokenizer(["a", "cat"], 16)
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    ).save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    unet = UNet2DConditionModel(
        sample_size=side // 8,
        block_out_channels=(4, 8, 8, 8),
        norm_num_groups=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        layers_per_block=2,
    )
    unet.save_pretrained(folder / "unet")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)).save_pretrained(control)
    return folder, control
