"""The small CLIP (Radford et al. 2021) that knows rendered portraits and the words of their captions.

It is an ``open_clip.CLIP`` of a configuration of its own, with a tokenizer of whole words: the captions use
about sixty of them. Pictures are RGB in [-1, 1] of any size; embeddings have unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.nn import functional

from dnnlib import config as config_files
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training.prior.vocabulary import Vocabulary, split_words

FORMAT = "mate3d-clip-1"
BUNDLED = Path(__file__).resolve().parents[2] / "pretrained" / "clip-64.safetensors"


@dataclass(frozen=True)
class TowerConfig:
    """A transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the model."""

    embed_dim: int = 64  # numbers in an embedding
    image_size: int = 64
    patch_size: int = 8
    image: TowerConfig = field(default_factory=lambda: TowerConfig(128, 4, 4))
    text: TowerConfig = field(default_factory=lambda: TowerConfig(96, 2, 3))
    length: int = 40  # tokens of a sentence, with its beginning and end


class PortraitClip(nn.Module):
    """Pictures and sentences to one space of unit vectors (N, embed_dim)."""

    def __init__(self, config: ClipConfig, words: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.words = tuple(words)
        self.vocabulary = Vocabulary(self.words, "the small CLIP")
        # 0 pads, then the beginning, the words, and the end: open_clip reads the sentence off at its largest
        self._numbers = {word: number + 2 for number, word in enumerate(self.words)}
        self._end = len(self.words) + 2
        image, text = config.image, config.text
        self.model = open_clip.CLIP(
            config.embed_dim,
            CLIPVisionCfg(
                layers=image.layers,
                width=image.width,
                head_width=image.width // image.heads,
                patch_size=config.patch_size,
                image_size=config.image_size,
            ),
            CLIPTextCfg(
                context_length=config.length,
                vocab_size=self._end + 1,
                width=text.width,
                heads=text.heads,
                layers=text.layers,
            ),
        )

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss."""
        return self.model.logit_scale.exp()

    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, D). Differentiable."""
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return self.model.encode_image(images.clamp(-1, 1), normalize=True)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """n sentences to (n, D); words that it does not know are left out, with a warning."""
        return self.model.encode_text(self.tokens(texts), normalize=True)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(n, length) int64; longer sentences are cut."""
        device = self.model.positional_embedding.device
        rows = torch.zeros(len(texts), self.config.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = split_words(self.vocabulary.known_part(text))
            numbers = [1, *(self._numbers[word] for word in words)][: self.config.length - 1] + [self._end]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows.to(device)

    def save(self, path: Path | str, extra: dict | None = None) -> None:
        """Half precision: half the size, and cosines differ in the fourth digit."""
        tensors = {name: value.half() for name, value in self.state_dict().items()}
        meta = {"format": FORMAT, "config": asdict(self.config), "words": list(self.words), **(extra or {})}
        checkpoint.save(path, tensors, meta)

    @classmethod
    def load(cls, path: Path | str = BUNDLED, device: torch.device | str = "cpu") -> PortraitClip:
        """Reads what :meth:`save` wrote, frozen."""
        tensors, meta = checkpoint.load(path, device=device)
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{path} is no CLIP of this project: `python -m training.metrics.train_clip` makes one"
            )
        clip = cls(config_files.load(ClipConfig, meta["config"]), meta["words"])
        clip.load_state_dict({name: value.float() for name, value in tensors.items()})
        return clip.eval().requires_grad_(False).to(device)


def directional_similarity(before: Tensor, after: Tensor, text_before: Tensor, text_after: Tensor) -> Tensor:
    """Cosine of the change of the pictures' embeddings with that of the sentences' (Gal et al. 2022).

    Pictures (N, D), sentences (N or 1, D) -> (N,) in [-1, 1]; 0 where nothing changed. Differentiable.
    """
    return functional.cosine_similarity(after - before, text_after - text_before, dim=-1)
