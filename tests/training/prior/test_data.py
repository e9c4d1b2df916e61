import dataclasses
import zipfile

import numpy as np
import pytest
import torch

from datasets.labels import label_set
from datasets.masked_images import MaskedImages
from datasets.portraits import BUNDLED
from dnnlib.errors import UserError
from training.prior.data import favour, rarity, read_data, retell, smooth_normals


def test_set_and_its_mirror_images(tiny_config):
    data = read_data(tiny_config)
    assert len(data) == 12 and data.images.shape == (12, 3, 16, 16) and data.images.dtype == torch.uint8
    assert torch.equal(data.images[6], data.images[0].flip(-1))
    permutation = torch.from_numpy(label_set("ffhq-mask").mirror_permutation())
    assert torch.equal(data.masks[6], permutation[data.masks[0].flip(-1).long()])
    assert data.captions[6] == data.captions[0]


def test_pictures_are_images_or_normal_maps(tiny_config):
    data = read_data(tiny_config)
    pictures = data.pictures(torch.tensor([1, 1]), torch.tensor([False, True]))
    assert torch.allclose(pictures[0], data.images[1].float() / 127.5 - 1)
    inside = data.masks[1] != 0
    lengths = pictures[1].norm(dim=0)
    assert (lengths[inside] - 1).abs().max() < 0.02  # bytes: half a step in each of three channels
    assert lengths[~inside].max() < 0.01
    mirrored = data.pictures(torch.tensor([7]), torch.tensor([True]))[0].flip(-1)
    flipped = pictures[1] * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
    np.testing.assert_allclose(mirrored.numpy(), flipped.numpy(), atol=2 / 127)  # background 128 is not 127.5


def test_normals_are_smoothed_within_a_class_only():
    normals = torch.zeros(1, 3, 6, 6)
    normals[:, 0, :, ::2], normals[:, 2, :, 1::2] = 1, 1  # hair whose strands face x and z in turn
    masks = torch.full((1, 6, 6), 13)
    normals[:, :, :2], masks[:, :2] = torch.tensor([0.0, -1, 0]).view(3, 1, 1), 1
    smooth = smooth_normals(normals, masks, [13], radius=1)
    assert torch.equal(smooth[:, :, :2], normals[:, :, :2])
    # three columns, of which one or two face x: unit length, and nothing of the skin's -y leaks in
    assert torch.allclose(smooth[:, :, 2:].norm(dim=1), torch.ones(1))
    assert torch.allclose(smooth[0, :, 4, 3], torch.tensor([2.0, 0, 1]) / 5**0.5)


def test_no_data_is_one_clear_line(tiny_config):
    with pytest.raises(UserError, match="--data"):
        read_data(dataclasses.replace(tiny_config, data=""))


def test_pictures_are_told_anew_from_their_attributes(tmp_path):
    names = MaskedImages(BUNDLED, None, "ffhq-mask", 64).names[:3]
    told = retell(BUNDLED, names, 4, 6)
    assert [len(each) for each in told] == [4] * 6
    assert told[0] == told[3] and told[0] != told[1]  # a mirror image has its picture's captions
    assert all(len(text.split()) < 9 for each in told for text in each[1::2])  # the brief ones
    with pytest.raises(UserError, match="retold captions need .*attributes"):
        retell(tmp_path, names, 4, 6)


def test_a_zip_is_told_anew_as_its_folder_is(tmp_path):
    names = MaskedImages(BUNDLED, None, "ffhq-mask", 64).names[:3]
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in names[:2]:
            name = f"attributes/{name.replace('.png', '.json')}"
            file.write(BUNDLED / name, name)
    assert retell(path, names[:2], 4, 4) == retell(BUNDLED, names[:2], 4, 4)
    with pytest.raises(UserError, match="retold captions need .*set.zip!/attributes"):
        retell(path, names, 4, 6)


def test_pictures_move_and_draws_stay(tiny_config):
    data = read_data(dataclasses.replace(tiny_config, rare=0.5))
    moved = data.to("meta")  # any device but the CPU, which every machine has
    assert {moved.device, moved.images.device, moved.normals.device, moved.masks.device} == {
        torch.device("meta")
    }
    index = moved.draw(4, torch.Generator().manual_seed(0))
    assert torch.equal(index, data.draw(4, torch.Generator().manual_seed(0)))
    assert moved.pictures(index, torch.tensor([True] * 4)).device.type == "meta"


def test_favoured_words_make_their_pictures_more_frequent(tiny_config):
    told = [("a man", "a man with a hat"), ("a man",), ("a cap",)]
    assert favour(told, ("hat", "cap"), 4.0).tolist() == [4.0, 1.0, 4.0]
    with pytest.raises(UserError, match="no caption has the favoured fez"):
        favour(told, ("hat", "fez"), 4.0)
    weights = read_data(dataclasses.replace(tiny_config, favoured=("blond",), favour=2.0)).weights
    assert weights.tolist() == [1.0, 2.0, 1.0] * 4  # three colours of hair in turn
    rare = read_data(dataclasses.replace(tiny_config, rare=1.0, favoured=("blond",))).weights
    torch.testing.assert_close(rare, torch.tensor([3.0, 9.0, 3.0] * 4))  # a third of them has each colour


def test_pictures_are_drawn_by_the_rarest_word_of_all_their_captions():
    told = [("a man",)] * 75 + [("a man", "a man with a hat")] * 24 + [("a man with a fez",)]
    weights = rarity(told, 0.5)
    shares = [1.0] * 75 + [0.24] * 24 + [0.03]  # 'hat' is told of 24 of 100; no word counts as rarer than 3 %
    torch.testing.assert_close(weights, torch.tensor(shares) ** -0.5)
    assert rarity([("",)], 1.0).tolist() == [1.0]
