"""Random models of the published sizes, to try what an edit takes.

``python -m training.benchmark.random_models`` writes generator.safetensors (the face model) and a folder in
the layout of Stable Diffusion 1.5 with a ControlNet; pictures made with them are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dnnlib.errors import user_errors
from dnnlib.options import OutFolder
from training.config import GeneratorConfig
from training.generator import Generator

TOKENIZER = Path(__file__).resolve().parents[2] / "pretrained" / "prior-64" / "tokenizer"
_WIDTH = 768  # of Stable Diffusion's text embeddings


def stable_diffusion_parts(**smaller: Mapping[str, Any]) -> dict[str, Any]:
    """Stable Diffusion 1.5 and a ControlNet by the names of their folders, initialised at random.

    ``smaller``: arguments of a part that replace the published ones (for tests).
    """
    attention = {"cross_attention_dim": _WIDTH, **smaller.get("unet", {})}
    text = {"hidden_size": _WIDTH, "intermediate_size": 3072, "num_attention_heads": 12}
    unet = UNet2DConditionModel(**{"sample_size": 64, **attention})
    autoencoder = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    return {
        "unet": unet,
        "controlnet": ControlNetModel.from_unet(unet, **smaller.get("controlnet", {})),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **{**autoencoder, **smaller.get("vae", {})},
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(**{"vocab_size": 49408, **text, **smaller.get("text_encoder", {})})
        ),
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--outdir", type=OutFolder(), default=Path("runs/random"))
@user_errors
def main(outdir: Path) -> None:
    Generator(GeneratorConfig(plane_projection="published")).save(outdir / "generator.safetensors")
    folder = outdir / "stable-diffusion"
    for name, part in stable_diffusion_parts().items():
        part.save_pretrained(folder / name)
    CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "tokenizer")
    click.echo(f"wrote {outdir / 'generator.safetensors'} and {folder}")


if __name__ == "__main__":
    main()
