"""Random models of the published layout."""

from __future__ import annotations

import torch
from transformers import CLIPTokenizer

from training.benchmark.random_models import TOKENIZER, stable_diffusion_parts
from training.prior import load_prior


def test_they_open_as_a_prior_with_its_controlnet(tmp_path):
    small = {
        "unet": {"sample_size": 8, "block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32},
        "controlnet": {"conditioning_embedding_out_channels": (4, 4, 8, 8)},
        "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    }
    small["text_encoder"]["num_attention_heads"] = 2
    for name, part in stable_diffusion_parts(**small).items():
        part.save_pretrained(tmp_path / name)
    CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "tokenizer")
    prior = load_prior(tmp_path)
    assert prior.controlnet is not None and prior.image_size == 64
    latents = prior.encode(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, 4, 8, 8)


def test_the_sizes_are_those_of_stable_diffusion():
    with torch.device("meta"):  # shapes without memory
        parts = stable_diffusion_parts()
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module)
    }
    # of the published files
    assert counts["unet"] == 859_520_964 and counts["vae"] == 83_653_863
    assert round(counts["text_encoder"] / 1e6) == 123 and round(counts["controlnet"] / 1e6) == 361
