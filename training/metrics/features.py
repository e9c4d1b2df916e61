"""Feature networks for distances between sets of pictures, to be chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dnnlib.errors import UserError
from training.judges import clip as clips
from training.judges import reader as readers
from training.judges.clip import PortraitClip
from training.judges.reader import Reader

NAMES = ("auto", "inception", "clip", "reader")
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's, as every FID uses them
_BATCH = 64


@dataclass(frozen=True)
class FeatureNetwork:
    """Pictures (n, 3, H, H) in [-1, 1] to features (n, D)."""

    name: str  # what the numbers are reported with
    extract: Callable[[Tensor], Tensor]  # a batch, on the network's device
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """On the CPU, where the distances are computed in double precision."""
        parts = [self.extract(part.to(self.device)) for part in images.split(_BATCH)]
        return torch.cat([part.float().cpu() for part in parts])


def feature_network(name: str, device: str = "cpu", say: Callable[[str], None] = print) -> FeatureNetwork:
    """'inception', 'clip' (the bundled one) or 'reader'; 'auto': Inception where its weights are at hand.

    'inception' fetches its weights (95 MB) when they are not there; 'auto' does not.
    """
    if name == "auto":
        name = "inception" if _inception_at_hand() else "clip"
        if name == "clip":
            say("features: the bundled CLIP (no Inception weights here; --features inception fetches them)")
    if name == "inception":
        return FeatureNetwork("inception", _inception(device), device)
    if name == "clip":
        return clip_features(PortraitClip.load(clips.BUNDLED, device))
    if name == "reader":
        return reader_features(Reader.load(readers.BUNDLED, device))
    raise UserError(f"--features '{name}' is none of {', '.join(NAMES)}")


def clip_features(clip: PortraitClip) -> FeatureNetwork:
    """Embeddings, times sqrt(D): their mean square is 1, as the polynomial kernel of KID expects."""
    scale = clip.config.embed_dim**0.5
    device = clip.logit_scale.device
    return FeatureNetwork("clip", lambda images: clip.encode_images(images) * scale, device)


def reader_features(reader: Reader) -> FeatureNetwork:
    """Means and deviations of each level's features over the picture."""

    def extract(images: Tensor) -> Tensor:
        levels = reader.features(images)
        return torch.cat([each for x in levels for each in (x.mean((2, 3)), x.std((2, 3)))], dim=1)

    return FeatureNetwork("reader", extract, reader.device)


def _inception_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE


def _inception_at_hand() -> bool:
    try:
        import torch_fidelity  # noqa: F401  an optional dependency
    except ImportError:
        return False
    return _inception_file().is_file()


def _inception(device: str) -> Callable[[Tensor], Tensor]:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)
    except ModuleNotFoundError as error:
        raise UserError(
            "--features inception needs `pip install torch-fidelity`; --features clip does not"
        ) from error
    except OSError as error:  # no network: urllib's errors are OSErrors
        raise UserError(
            f"Inception's weights cannot be fetched ({error}): put {_INCEPTION_FILE} into "
            f"{_inception_file().parent}, or take --features clip"
        ) from error
    return lambda images: network(((images.clamp(-1, 1) + 1) * 127.5).round().byte())
