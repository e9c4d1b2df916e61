"""The small CLIP: its words, its embeddings, its files, and that it can learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dnnlib.errors import UserError
from training.judges.clip import PortraitClip, directional_similarity
from training.metrics.portrait_set import fit
from training.metrics.train_clip import contrastive_loss


def test_sentences_begin_end_and_are_cut(clip: PortraitClip) -> None:
    rows = clip.tokens(["a red hat", "a person with red hair wearing a blue hat , a hat"])
    assert rows.shape == (2, 10)
    end = len(clip.words) + 2
    assert rows[0].tolist()[:5] == [1, 2, 5, 9, end] and rows[0, 5:].sum() == 0
    assert rows[1, -1] == end and (rows[1, :-1] < end).all()


def test_unknown_words_are_left_out_with_a_warning(clip: PortraitClip) -> None:
    with pytest.warns(UserWarning, match="zebra"):
        rows = clip.tokens(["a red zebra hat"])
    assert torch.equal(rows, clip.tokens(["a red hat"]))


def test_embeddings_are_unit_vectors_of_any_size_of_picture(clip: PortraitClip) -> None:
    for side in (16, 40):
        found = clip.encode_images(torch.rand(3, 3, side, side) * 2 - 1)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(clip.encode_texts(["a hat"]).norm(dim=1), torch.ones(1))


def test_gradients_reach_the_picture(clip: PortraitClip) -> None:
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (clip.encode_images(image) @ clip.encode_texts(["a red hat"]).T).sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_file_gives_the_same_embeddings(clip: PortraitClip, tmp_path: Path) -> None:
    clip.save(tmp_path / "clip.safetensors")
    again = PortraitClip.load(tmp_path / "clip.safetensors")
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    # half precision keeps three digits
    torch.testing.assert_close(again.encode_images(images), clip.encode_images(images), atol=5e-3, rtol=0)
    assert again.words == clip.words


def test_another_kind_of_file_is_explained(network: Path) -> None:
    with pytest.raises(UserError, match="no CLIP"):
        PortraitClip.load(network)


def test_directional_similarity_by_hand() -> None:
    x, y = torch.eye(2)[:1], torch.eye(2)[1:]
    assert directional_similarity(x, y, x, y).item() == pytest.approx(1)
    assert directional_similarity(x, y, y, x).item() == pytest.approx(-1)
    assert directional_similarity(x, x, x, y).item() == 0  # nothing changed
    assert directional_similarity(x, x + 2 * (y - x), x, y).item() == pytest.approx(1)


def test_it_learns_which_colour_is_meant(clip: PortraitClip) -> None:
    images = torch.zeros(2, 3, 16, 16)
    images[0, 0], images[1, 2] = 1, 1
    captions = ["a red hat", "a blue hat"]
    fit(
        clip,
        lambda source: contrastive_loss(clip, images, captions),
        steps=60,
        lr=1e-2,
        say=lambda text: None,
    )
    with torch.no_grad():
        alike = clip.encode_images(images) @ clip.encode_texts(captions).T
    assert alike.argmax(1).tolist() == [0, 1]
