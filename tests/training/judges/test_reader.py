"""The reader and the identity network, and the pictures that they are taught with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets.labels import label_set
from dnnlib.errors import UserError
from training.judges.attributes import ATTRIBUTES, HIDDEN
from training.judges.identity import Identifier, IdentityNet
from training.judges.reader import Reader
from training.metrics.portrait_set import fit, varied
from training.metrics.train_identity import contrast, heads_of, separation
from training.metrics.train_reader import reading_loss

LABELS = label_set("ffhq-mask")
MIRROR = torch.from_numpy(LABELS.mirror_permutation()).long()


def test_a_reading_has_a_class_per_pixel_and_a_value_per_attribute(reader: Reader) -> None:
    reading = reader(torch.rand(3, 3, 16, 16) * 2 - 1)
    assert reading.classes.shape == (3, LABELS.count, 16, 16)
    assert {name: x.shape for name, x in reading.attributes.items()} == {
        name: (3, len(values)) for name, values in ATTRIBUTES.items()
    }
    words = reading.words()
    assert len(words) == 3 and all(w[name] in ATTRIBUTES[name] for w in words for name in ATTRIBUTES)


def test_masks_have_the_size_of_the_pictures(reader: Reader) -> None:
    assert reader.masks(torch.zeros(2, 3, 48, 48)).shape == (2, 48, 48)


def test_the_reader_learns_mask_and_colour(reader: Reader) -> None:
    """Red and blue clothes below a grey background."""
    images = torch.zeros(2, 3, 16, 16)
    images[0, 0, 8:], images[1, 2, 8:] = 1, 1
    masks = torch.zeros(2, 16, 16, dtype=torch.long)
    masks[:, 8:] = LABELS.index("cloth")
    wanted = torch.full((2, len(ATTRIBUTES)), HIDDEN)
    place = list(ATTRIBUTES).index("cloth colour")
    wanted[:, place] = torch.tensor([ATTRIBUTES["cloth colour"].index(c) for c in ("red", "blue")])

    def loss(source: torch.Generator) -> torch.Tensor:
        return reading_loss(reader(images), masks, wanted)

    fit(reader, loss, steps=80, lr=1e-2, say=lambda text: None)
    with torch.no_grad():
        reading = reader(images)
    assert (reading.classes.argmax(1) == masks).float().mean() > 0.95
    assert [words["cloth colour"] for words in reading.words()] == ["red", "blue"]


def test_files_give_the_same_answers(reader: Reader, identity: IdentityNet, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    masks = torch.ones(2, 16, 16, dtype=torch.long)
    reader.save(tmp_path / "r.safetensors")
    identity.save(tmp_path / "i.safetensors")
    # half precision keeps three digits
    again = Reader.load(tmp_path / "r.safetensors")(images).classes
    torch.testing.assert_close(again, reader(images).classes, atol=2e-2, rtol=0)
    again = IdentityNet.load(tmp_path / "i.safetensors")(images, masks)
    torch.testing.assert_close(again, identity(images, masks), atol=5e-3, rtol=0)
    with pytest.raises(UserError, match="no reader"):
        Reader.load(tmp_path / "i.safetensors")
    with pytest.raises(UserError, match="no identity network"):
        IdentityNet.load(tmp_path / "r.safetensors")


def test_variations_mirror_classes_with_the_picture() -> None:
    """A left eye on the left stays one: mirrored, it is a right eye on the right."""
    images, masks = torch.zeros(64, 3, 8, 8), torch.zeros(64, 8, 8, dtype=torch.uint8)
    images[..., 4, 1], masks[..., 4, 1] = 1, LABELS.index("left eye")
    images, masks = varied(images, masks, MIRROR, torch.Generator().manual_seed(0), shift=1)
    seen = {int(c) for c in masks.unique()} - {0}
    assert seen == {LABELS.index("left eye"), LABELS.index("right eye")}
    for image, mask in zip(images, masks, strict=True):
        row, column = mask.nonzero()[0].tolist()
        assert image[0, row, column] == 1
        assert (column < 4) == (mask[row, column] == LABELS.index("left eye"))


def test_only_the_face_makes_the_identity(reader: Reader, identity: IdentityNet) -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    masks = torch.full((1, 16, 16), LABELS.index("hair"))
    masks[:, 5:12, 5:12] = LABELS.index("skin")
    other = images.clone()
    other[..., :5, :] = -1
    assert torch.equal(identity(images, masks), identity(other, masks))
    other[..., 6, 6] = -1
    assert not torch.equal(identity(images, masks), identity(other, masks))
    assert Identifier(reader, identity)(images).shape == (1, 6)


def test_what_covers_a_part_of_the_face_makes_no_other_person(
    reader: Reader, identity: IdentityNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).repeat(2, 1, 1, 1)
    masks = torch.full((2, 16, 16), LABELS.index("hair"))
    masks[:, 4:14, 4:12] = LABELS.index("skin")
    images[1, :, 4:8], masks[1, 4:8] = 0.5, LABELS.index("hat")
    monkeypatch.setattr(Reader, "masks", lambda _, pictures: masks)
    embed = Identifier(reader, identity)
    before, after = embed.shared(images)
    assert torch.equal(before, after)
    assert not torch.allclose(*embed(images), atol=1e-3)
    images[1, :, 10, 6] += 1
    assert not torch.allclose(*embed.shared(images), atol=1e-4)
    masks[1] = LABELS.index("hat")
    assert not embed.shared(images).any()


def test_contrast_is_small_when_heads_are_apart() -> None:
    heads = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    # each has one other of its own: -log(e^10 / (e^10 + 2))
    assert contrast(apart, heads).item() == pytest.approx(2 * 2.718281828**-10, rel=0.01)
    assert contrast(apart[[0, 2, 1, 3]], heads).item() > 5


def test_separation_of_a_network_that_sees_the_head(identity: IdentityNet, monkeypatch) -> None:
    class Known:
        """Embeds a picture by its first pixel."""

        def __call__(self, images, masks):
            return torch.nn.functional.one_hot((images[:, 0, 0, 0] > 0).long(), 2).float()

    from training.metrics.portrait_set import PortraitSet

    images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    images[2:] = 255
    names = ["a/view0.png", "a/view1.png", "b/view0.png", "b/view1.png"]
    masks = torch.zeros(4, 4, 4, dtype=torch.uint8)
    pictures = PortraitSet(names, images, masks, torch.zeros(4, 25), MIRROR, [""] * 4, [{}] * 4)
    assert heads_of(pictures).tolist() == [0, 0, 1, 1]
    assert separation(Known(), pictures) == {"same": 1.0, "others": 0.0, "area": 1.0, "R@1": 1.0}
