"""Opens a prior: a diffusers folder, or a name on the Hugging Face Hub, of safetensors files only."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from dnnlib.download import hub_leads_nowhere
from dnnlib.errors import UserError
from dnnlib.files import read_json
from training.prior.models import PRIOR_FILE
from training.prior.prior import Prior
from training.prior.vocabulary import Vocabulary

_SHORT_NAMES = {"stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
_FORBIDDEN = (".bin", ".ckpt", ".pt", ".pth")  # pickles


@dataclass(frozen=True)
class PriorMemory:
    """What to save memory with, at the price of time or of exactness."""

    dtype: torch.dtype | None = None  # None: float16 on CUDA, float32 elsewhere
    attention_slicing: bool = False  # attention one head at a time: slower, the same result
    vae_tiling: bool = False  # the autoencoder on overlapping tiles of half the side: edges differ slightly


def load_prior(
    path: str | Path,
    controlnet: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory: PriorMemory | None = None,
    predictions: torch.dtype | None = None,
) -> Prior:
    """Load the small prior or Stable Diffusion 1.5 from a diffusers folder or a name on the Hugging Face Hub.

    ``controlnet`` is another folder or name; by default the ``controlnet`` subfolder, where there is one.
    ``predictions``: the type of what only predicts noise, UNet and ControlNet; None: that of the rest.
    """
    memory = memory or PriorMemory(dtype)
    dtype = memory.dtype or default_dtype(device)
    predictions = predictions or dtype
    source = Source.of(path, "--prior")
    if controlnet is not None:
        control = Source.of(controlnet, "--controlnet").read(ControlNetModel, None, predictions)
    elif source.has("controlnet"):
        control = source.read(ControlNetModel, "controlnet", predictions)
    else:
        control = None
    prior = Prior(
        vae=source.read(AutoencoderKL, "vae", dtype),
        text_encoder=source.read(CLIPTextModel, "text_encoder", dtype),
        tokenizer=source.read(CLIPTokenizer, "tokenizer", None),
        unet=source.read(UNet2DConditionModel, "unet", predictions),
        controlnet=control,
        scheduler=source.read(DDPMScheduler, "scheduler", None),
        vocabulary=source.vocabulary(),
    )
    _check(prior, str(source))
    _save_memory(prior, memory)
    if torch.device(device).type == "cpu":  # where convolutions with channels innermost are a quarter faster
        prior.to(memory_format=torch.channels_last)
    return prior.to(device)


@dataclass(frozen=True)
class Source:
    """Where the parts of a model are read from."""

    name: str  # a folder, or owner/name on the Hub
    below: str = ""  # folder inside the Hub's repository

    def __str__(self) -> str:
        return "/".join(filter(None, (self.name, self.below)))

    @classmethod
    def of(cls, path: str | Path, option: str) -> Source:
        """``path`` as a folder that exists, or as 'owner/name' or 'owner/name/folder' on the Hub."""
        text = str(path)
        if Path(text).is_dir():
            return cls(text)
        name = _SHORT_NAMES.get(text, text)
        parts = name.split("/")
        if len(parts) < 2 or text[0] in "./~" or "\\" in text or not all(parts) or ".." in parts:
            raise UserError(
                f"{option}: there is no folder {text}; give a diffusers folder or a Hub name owner/name"
            )
        if Path(parts[0]).is_dir():  # a slip in a path of this disk
            raise UserError(f"{option}: there is no folder {text}")
        return cls("/".join(parts[:2]), "/".join(parts[2:]))

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()

    def has(self, part: str) -> bool:
        """Whether the folder has a subfolder; of a name on the Hub nothing is known beforehand."""
        return (Path(self.name) / part).is_dir()

    def read(self, cls: Any, part: str | None, dtype: torch.dtype | None) -> Any:
        """A part by its class; ``part`` is its subfolder, ``dtype`` None for what has no weights."""
        subfolder = "/".join(filter(None, (self.below, part)))
        what = part or cls.__name__
        options: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
        if dtype is not None:
            options |= {"torch_dtype": dtype, "use_safetensors": True, **self._variant(subfolder, what)}
        if lost := not self.is_folder and hub_leads_nowhere():
            options["local_files_only"] = True  # what was fetched before
        try:
            with warnings.catch_warnings():  # of an option that diffusers still gives to the Hub's client
                warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
                return cls.from_pretrained(self.name, **options)
        except (OSError, ValueError) as error:  # missing files, no network, a folder of another kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if lost:
                reason = "there is no way to the Hub, and it was not fetched before"
            by_hand = "" if self.is_folder else (
                f"; without a network: run `hf download {self.name} --local-dir FOLDER` where there is one, "
                "and give FOLDER instead of the name"
            )  # fmt: skip
            raise UserError(f"cannot load {what} of {self}: {reason}{by_hand}") from error

    def vocabulary(self) -> Vocabulary:
        """The words that it was trained on; unlimited unless it is a small prior of this project."""
        file = Path(self.name) / PRIOR_FILE
        words = read_json(file).get("words") if file.is_file() else None
        return Vocabulary(words, name=f"the prior {Path(self.name).name}")

    def _variant(self, subfolder: str, what: str) -> dict[str, str]:
        """Refuses a folder that holds pickles only; says so where it holds half-precision files only."""
        if not self.is_folder:
            return {}
        held = [file.name for file in (Path(self.name) / subfolder).glob("*") if file.is_file()]
        weights = [name for name in held if name.endswith(".safetensors")]
        pickles = sorted(name for name in held if name.endswith(_FORBIDDEN))
        if pickles and not weights:
            raise UserError(
                f"{what} of {self} is {pickles[0]}, which could run code when read; only safetensors are "
                "read: fetch that version, or save it with save_pretrained(..., safe_serialization=True)"
            )
        only_half = weights and all(".fp16" in name for name in weights)
        return {"variant": "fp16"} if only_half else {}


def default_dtype(device: str | torch.device) -> torch.dtype:
    """float16 on CUDA; CPUs compute with it slowly or not at all."""
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def quickest_predictions(device: str | torch.device, bfloat16: bool = True) -> torch.dtype | None:
    """What an edit should have its noise predicted in, as :func:`load_prior` takes it: where it may be
    ``bfloat16``, that on CPUs that multiply such numbers, twice as many at a time (docs/edit.md has what that
    gains, and what it changes)."""
    # not public, so it may go away: then float32 does
    multiplies = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    on_cpu = torch.device(device).type == "cpu"
    return torch.bfloat16 if bfloat16 and on_cpu and multiplies() else None


def _save_memory(prior: Prior, memory: PriorMemory) -> None:
    if memory.attention_slicing:
        for module in filter(None, (prior.unet, prior.controlnet)):
            module.set_attention_slice("max")
    if memory.vae_tiling:
        prior.vae.enable_tiling()
        prior.vae.enable_slicing()
        prior.vae.tile_sample_min_size = prior.image_size // 2
        prior.vae.tile_latent_min_size = prior.latent_size // 2


def _check(prior: Prior, source: str) -> None:
    if prior.unet.config.in_channels != prior.latent_channels:
        raise UserError(
            f"the UNet of {source} takes {prior.unet.config.in_channels} channels and its VAE makes "
            f"{prior.latent_channels}: an inpainting model? Give a text-to-image one, as Stable Diffusion 1.5"
        )
    kind = prior.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{source} predicts '{kind}'; only 'epsilon' and 'v_prediction' models can be distilled here"
        )
    wanted, width = prior.unet.config.cross_attention_dim, prior.text_encoder.config.hidden_size
    control = wanted if prior.controlnet is None else prior.controlnet.config.cross_attention_dim
    if not wanted == width == control:
        raise UserError(
            f"text width {width}, UNet {wanted} and ControlNet {control} of {source} differ: they belong to "
            "different versions of Stable Diffusion"
        )
