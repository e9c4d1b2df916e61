"""datasets/labels.py: however a mask is stored it gives the same classes; a mistake gives one clear line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from datasets.labels import LABEL_SETS, decode_mask, encode_mask, label_set, read_mask, write_mask
from dnnlib.errors import UserError

FFHQ = label_set("ffhq-mask")
CATS = label_set("catmask-hq")


def png(image: Image.Image | np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def all_classes() -> np.ndarray:
    """(5, 20) mask with every class of ffhq-mask, several times."""
    return (np.arange(100).reshape(5, 20) * 7 % FFHQ.count).astype(np.uint8)


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS)
def test_sets_are_consistent(labels) -> None:
    assert labels.count == len(labels.names) == len(set(labels.names))
    assert len(labels.palette) == len(set(labels.palette)) == labels.count
    assert labels.names[0] == "background" and labels.palette[0] == (0, 0, 0)
    # reading three-channel index files relies on it
    assert not any(r == g == b for r, g, b in labels.palette[1:])


def test_official_numbers() -> None:
    assert (FFHQ.count, CATS.count) == (19, 6)
    assert [FFHQ.index(name) for name in ("skin", "glasses", "left eye", "hair", "hat", "cloth")] == [
        1, 3, 4, 13, 14, 18,
    ]  # fmt: skip
    assert FFHQ.palette[13] == (0, 0, 204)
    assert CATS.palette == FFHQ.palette[:6]


def test_mirrored_pairs() -> None:
    permutation = FFHQ.mirror_permutation()
    assert [FFHQ.names[i] for i in permutation[4:10]] == [
        "right eye", "left eye", "right brow", "left brow", "right ear", "left ear",
    ]  # fmt: skip
    assert (permutation[permutation] == np.arange(19)).all()
    assert (np.delete(permutation, range(4, 10)) == np.delete(np.arange(19), range(4, 10))).all()
    assert (CATS.mirror_permutation() == np.arange(6)).all()


def test_names() -> None:
    assert FFHQ.index("Left_Eye") == FFHQ.index("left-eye") == 4
    with pytest.raises(UserError, match="no class 'hiar'; did you mean 'hair'"):
        FFHQ.index("hiar")
    with pytest.raises(UserError, match="no label set 'ffhq_mask'; did you mean 'ffhq-mask'"):
        label_set("ffhq_mask")


def test_every_way_of_storing_a_mask() -> None:
    mask = all_classes()
    colours = FFHQ.colourise(mask)
    opaque = np.dstack([colours, np.full(mask.shape, 255, np.uint8)])
    stored = {
        "palette": encode_mask(mask, FFHQ),
        "index": png(mask),
        "16-bit index": png(mask.astype(np.uint16)),
        "index in three channels": png(np.repeat(mask[..., None], 3, axis=2)),
        "colour": png(colours),
        "colour with alpha": png(opaque),
        "palette reordered by an editor": png(Image.fromarray(colours).quantize(19)),
        "palette without colours": png(Image.fromarray(mask).convert("P")),
    }
    for kind, data in stored.items():
        np.testing.assert_array_equal(decode_mask(data, kind, FFHQ), mask, err_msg=kind)


def test_what_an_editor_erased_is_background() -> None:
    """Its colour is still there under the transparency; soft brushes leave half of it."""
    mask = all_classes()
    alpha = np.linspace(0, 255, mask.size).reshape(mask.shape).astype(np.uint8)
    kept = np.where(alpha >= 128, mask, 0)
    for values in (FFHQ.colourise(mask), mask):
        np.testing.assert_array_equal(decode_mask(png(np.dstack([values, alpha])), "m.png", FFHQ), kept)


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 18))
)
@settings(max_examples=40)
def test_any_mask_survives(mask: np.ndarray) -> None:
    for data in (encode_mask(mask, FFHQ), png(mask), png(FFHQ.colourise(mask))):
        np.testing.assert_array_equal(decode_mask(data, "m.png", FFHQ), mask)


def test_two_classes_in_one_bit() -> None:
    mask = np.eye(8, dtype=bool)
    assert (decode_mask(png(mask), "m.png", FFHQ) == mask).all()


def test_file_round_trip(tmp_path) -> None:
    mask = all_classes()
    write_mask(tmp_path / "m.png", mask, FFHQ)
    assert (read_mask(tmp_path / "m.png", FFHQ, (5, 20)) == mask).all()
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == FFHQ.colourise(mask)).all()
        assert (np.asarray(image) == mask).all()  # a reader that knows no palettes gets the indices


@pytest.mark.parametrize("bad", [np.full((2, 2), 19), np.full((2, 2), -1), np.zeros((2, 2, 3))])
def test_only_masks_are_written(tmp_path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a mask is"):
        write_mask(tmp_path / "m.png", bad, FFHQ)
    assert not (tmp_path / "m.png").exists()


def one_pixel(value, mode: str) -> bytes:
    image = Image.new(mode, (6, 4))
    image.putpixel((5, 2), value)
    return png(image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (one_pixel((200, 4, 0), "RGB"), r"colour 200,4,0 at row 2, column 5.*\(1 such pixels.*skin 204,0,0"),
        (one_pixel((76, 153, 1, 255), "RGBA"), "colour 76,153,1 .* nose 76,153,0"),
        (one_pixel(19, "L"), "index 19 at row 2, column 5 .* classes 0 to 18"),
        (one_pixel(300, "I;16"), "index 300 at row 2"),
        (png(np.full((4, 6, 3), 255, np.uint8)), "colour 255,255,255"),
        (png(np.zeros((4, 4), np.uint8)), "m.png is 4x4, expected 6x4"),
        (png(all_classes())[:60], "m.png is damaged or cut short"),
        (png(FFHQ.colourise(all_classes()))[:-40], "m.png is damaged or cut short"),
        (b"", "m.png is not a picture that can be read: it is empty"),
        (b"no picture at all", "m.png is not a picture that can be read"),
    ],
)
def test_mistakes_are_one_clear_line(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        decode_mask(data, "m.png", FFHQ, (4, 6))
    assert "\n" not in str(caught.value)


def test_flipped_bits_never_end_in_another_error() -> None:
    """A damaged file is a UserError or, where the damage does not matter, a mask."""
    data = png(FFHQ.colourise(all_classes()))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            decode_mask(bytes(damaged), "m.png", FFHQ)
        except UserError:
            pass


def test_unreadable_paths(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot read the mask .*none.png: No such file"):
        read_mask(tmp_path / "none.png", FFHQ)
    with pytest.raises(UserError, match="cannot read the mask"):
        read_mask(tmp_path, FFHQ)


def test_cat_masks_know_six_classes_only() -> None:
    with pytest.raises(UserError, match="not in the catmask-hq palette"):
        decode_mask(png(FFHQ.colourise(all_classes())), "m.png", CATS)
    assert (decode_mask(png(CATS.colourise(np.full((2, 2), 5))), "m.png", CATS) == 5).all()
