"""Label sets: names, palettes and mirrored pairs of the classes, and masks as PNG files.

A mask is an integer class map, uint8 of shape (H, W), whose values index the label set. On disk it is one of

* an index PNG: one channel, the value is the class (also the same value in three channels);
* a palette PNG: the colours of its palette are those of the label set, in any order;
* an RGB PNG in the colours of the label set.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dnnlib.errors import UserError, did_you_mean
from dnnlib.files import atomic_path

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a kind of mask, in index order."""

    name: str
    names: tuple[str, ...]  # P class names; index 0 is the background
    palette: tuple[Colour, ...]  # P colours, RGB 0-255
    mirrored: tuple[tuple[int, int], ...] = ()  # pairs of classes that change places in a mirror image
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)  # point that this kind of picture's cameras look at

    @property
    def count(self) -> int:
        """Number P of classes, background included."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of the class ``name``; 'left eye', 'left-eye' and 'Left_Eye' are the same class."""
        wanted = " ".join(name.replace("_", " ").replace("-", " ").lower().split())
        if wanted not in self.names:
            raise UserError(f"{self.name} has no class '{name}'; {did_you_mean(wanted, self.names)}")
        return self.names.index(wanted)

    def mirror_permutation(self) -> np.ndarray:
        """(P,) uint8: class p of a picture is class ``permutation[p]`` of its mirror image."""
        permutation = np.arange(self.count, dtype=np.uint8)
        for left, right in self.mirrored:
            permutation[left], permutation[right] = right, left
        return permutation

    def colourise(self, mask: np.ndarray) -> np.ndarray:
        """Class map (..., H, W) to its palette colours (..., H, W, 3) uint8."""
        return np.array(self.palette, dtype=np.uint8)[mask]


_PALETTE: tuple[Colour, ...] = (
    (0, 0, 0),
    (204, 0, 0),
    (76, 153, 0),
    (204, 204, 0),
    (51, 51, 255),
    (204, 0, 204),
    (0, 255, 255),
    (255, 204, 204),
    (102, 51, 0),
    (255, 0, 0),
    (102, 204, 0),
    (255, 255, 0),
    (0, 0, 153),
    (0, 0, 204),
    (255, 51, 153),
    (0, 204, 204),
    (0, 51, 0),
    (255, 153, 51),
    (0, 204, 0),
)

# the order of CelebAMask-HQ
_FFHQ_NAMES = (
    "background",
    "skin",
    "nose",
    "glasses",
    "left eye",
    "right eye",
    "left brow",
    "right brow",
    "left ear",
    "right ear",
    "mouth",
    "upper lip",
    "lower lip",
    "hair",
    "hat",
    "earring",
    "necklace",
    "neck",
    "cloth",
)
_CAT_NAMES = ("background", "skin", "ears", "eyes", "nose", "mouth")

LABEL_SETS: dict[str, LabelSet] = {
    labels.name: labels
    for labels in (
        LabelSet(
            "ffhq-mask", _FFHQ_NAMES, _PALETTE, mirrored=((4, 5), (6, 7), (8, 9)), pivot=(0.0, 0.0, 0.2)
        ),
        LabelSet("catmask-hq", _CAT_NAMES, _PALETTE[: len(_CAT_NAMES)], pivot=(0.0, 0.0, -0.06)),
    )
}


def label_set(name: str) -> LabelSet:
    """The label set called ``name``."""
    if name not in LABEL_SETS:
        raise UserError(f"there is no label set '{name}'; {did_you_mean(name, LABEL_SETS)}")
    return LABEL_SETS[name]


def read_mask(
    path: str | os.PathLike[str], labels: LabelSet, size: int | tuple[int, int] | None = None
) -> np.ndarray:
    """Read a mask PNG as a class map (H, W) uint8.

    ``size`` is the side of a square mask, or (height, width); another size is an error, as are a colour or an
    index that ``labels`` does not have and a file that cannot be read to its end. What was erased in an
    editor, transparent with any colour underneath, is background.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the mask {path}: {error.strerror or error}") from error
    return decode_mask(data, str(path), labels, size)


def decode_mask(
    data: bytes, name: str, labels: LabelSet, size: int | tuple[int, int] | None = None
) -> np.ndarray:
    """:func:`read_mask` for the bytes of a file; ``name`` is what error messages call it."""
    image = decode_image(data, name)
    expected = (size, size) if isinstance(size, int) else size
    if expected is not None and (image.height, image.width) != tuple(expected):
        raise UserError(
            f"{name} is {image.width}x{image.height}, expected {expected[1]}x{expected[0]}: "
            "resize it with nearest neighbours, so that no new colours appear"
        )
    if image.mode == "P":
        return _from_palette(image, name, labels)
    values = np.asarray(image).copy()
    if image.mode in ("LA", "RGBA"):
        values[values[..., -1] < 128] = 0  # half transparent, from soft brushes: whichever is nearer
    if image.mode in ("1", "L", "I", "I;16", "I;16B", "LA"):
        return _from_indices(values[..., 0] if image.mode == "LA" else values, name, labels)
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return _from_colours(values[..., :3], name, labels)
    raise UserError(f"{name} has colour mode {image.mode}; save the mask as index, palette or RGB PNG")


def decode_image(data: bytes, name: str) -> Image.Image:
    """The picture in ``data``, read to its end; ``name`` is what error messages call it."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()  # Image.open reads the header only: a truncated file shows here
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read: {_what_it_is(data)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is damaged or cut short ({error}): copy or export it again") from error
    return image


def write_mask(path: str | os.PathLike[str], mask: np.ndarray, labels: LabelSet) -> None:
    """Write a class map (H, W) as a palette PNG, atomically: viewers show colours, readers get indices."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_mask(mask, labels))


def encode_mask(mask: np.ndarray, labels: LabelSet) -> bytes:
    """The palette PNG of a class map (H, W)."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.min(initial=0) < 0 or mask.max(initial=0) >= labels.count:
        raise ValueError(
            f"a mask is (H, W) with values 0 to {labels.count - 1}, not {mask.shape} "
            f"with {mask.min(initial=0)} to {mask.max(initial=0)}"
        )
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(np.array(labels.palette, dtype=np.uint8).tobytes())  # makes the mode 'P'
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _what_it_is(data: bytes) -> str:
    return "it is empty" if not data else "its format is unknown, or its beginning is damaged"


def _from_indices(indices: np.ndarray, name: str, labels: LabelSet) -> np.ndarray:
    wrong = (indices < 0) | (indices >= labels.count)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise UserError(
            f"{name} has index {indices[y, x]} at row {y}, column {x} ({wrong.sum()} pixels in all); "
            f"{labels.name} has the classes 0 to {labels.count - 1}"
        )
    return indices.astype(np.uint8)


def _from_palette(image: Image.Image, name: str, labels: LabelSet) -> np.ndarray:
    """By colour, not by index: editors reorder a palette, and leave out the colours that are not used."""
    indices = np.asarray(image)
    palette = np.zeros((256, 3), dtype=np.uint8)
    stored = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    if (palette[: len(stored)] == grey[: len(stored)]).all():  # no colours at all: an index PNG in disguise
        return _from_indices(indices, name, labels)
    return _from_colours(palette[indices], name, labels)


def _from_colours(colours: np.ndarray, name: str, labels: LabelSet) -> np.ndarray:
    """Colours (H, W, 3) uint8 to classes."""
    codes = _codes(colours)
    palette = _codes(np.array(labels.palette, dtype=np.uint8))
    order = np.argsort(palette)
    place = np.searchsorted(palette[order], codes).clip(max=labels.count - 1)
    mask = order[place].astype(np.uint8)
    wrong = palette[mask] != codes
    if not wrong.any():
        return mask
    grey = (colours == colours[..., :1]).all()
    if grey and colours.max() < labels.count:  # an index PNG saved with three channels; palettes hold no grey
        return colours[..., 0].copy()
    raise UserError(_unknown_colour(colours, wrong, name, labels))


def _unknown_colour(colours: np.ndarray, wrong: np.ndarray, name: str, labels: LabelSet) -> str:
    y, x = np.argwhere(wrong)[0]
    colour = colours[y, x].astype(int)
    distance = np.abs(np.array(labels.palette) - colour).sum(axis=1)
    near = int(distance.argmin())
    return (
        f"{name} has the colour {_text(colour)} at row {y}, column {x}, which is not in the {labels.name} "
        f"palette ({wrong.sum()} such pixels; the nearest is {labels.names[near]} "
        f"{_text(labels.palette[near])}): paint without soft edges and save as PNG"
    )


def _text(colour: Sequence[int]) -> str:
    return ",".join(str(int(channel)) for channel in colour)


def _codes(colours: np.ndarray) -> np.ndarray:
    """RGB uint8 (..., 3) to one int32 each."""
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
