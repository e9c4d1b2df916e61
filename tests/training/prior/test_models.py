import json

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from training.prior.load import load_prior
from training.prior.models import NORMAL_PREFIX, build_parts, save_parts, words_of
from training.prior.prior import prior_of


@pytest.fixture(scope="module")
def saved(tiny_config, tmp_path_factory):
    """An untrained prior and its folder."""
    torch.manual_seed(0)
    parts = build_parts(tiny_config, words_of(["a woman with red hair", "a man, smiling"]))
    folder = tmp_path_factory.mktemp("models") / "prior"
    save_parts(parts, folder, tiny_config, {"pictures": 2})
    return parts, folder


def test_words_include_those_of_normal_maps():
    assert set(NORMAL_PREFIX.split()) | {"red", ","} <= set(words_of(["red, red"]))


def test_build_is_deterministic(tiny_config):
    first, second = (build_parts(tiny_config, ("a", "man")).unet.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_folder_round_trip(saved):
    parts, folder = saved
    loaded = load_prior(folder)
    assert loaded.dtype == torch.float32
    prompts = ["a woman with red hair"]
    # the file holds float16: 11 significant bits
    torch.testing.assert_close(loaded.embed(prompts), prior_of(parts).embed(prompts))
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(loaded.encode(picture), prior_of(parts).encode(picture), atol=1e-2, rtol=1e-2)


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(saved, tiny_config):
    parts, folder = saved
    save_parts(parts, folder, tiny_config, {"pictures": 3})
    assert json.loads((folder / "prior.json").read_text())["pictures"] == 3
    assert [path.name for path in folder.parent.iterdir()] == ["prior"]


def test_diffusers_pipeline_opens_the_folder_and_samples(saved):
    _, folder = saved
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    mask = torch.rand(1, 3, 16, 16)
    pictures = pipeline(
        "a woman with red hair", image=mask, num_inference_steps=2, guidance_scale=4.0, output_type="pt"
    ).images
    assert pictures.shape == (1, 3, 16, 16) and torch.isfinite(pictures).all()
