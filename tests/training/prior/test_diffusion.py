import copy
import dataclasses

import pytest
import torch

from datasets.labels import label_set
from training.prior.data import read_data
from training.prior.diffusion import DiffusionStage, _mean, coarsened, encode_all, normal_caption
from training.prior.models import NORMAL_PREFIX, build_parts, words_of


@pytest.fixture(scope="module")
def setting(tiny_config):
    data = read_data(tiny_config)
    parts = build_parts(tiny_config, words_of(list(data.captions)))
    parts.vae.requires_grad_(False)
    return tiny_config, data, parts, encode_all(parts, data, batch=5)


def make_stage(setting, **changes):
    config, data, parts, latents = setting
    options = dataclasses.replace(config.diffusion, **changes)
    return DiffusionStage(options, data, parts, latents, label_set(config.labels))


def modules(setting):
    return torch.nn.ModuleDict({k: m for k, m in setting[2].modules().items() if k != "vae"})


def test_latents_of_images_and_normal_maps(setting):
    config, data, parts, latents = setting
    assert latents.shape == (2, len(data), 4, config.latent_size, config.latent_size)
    normal = data.pictures(torch.tensor([3]), torch.tensor([True]))
    assert torch.allclose(latents[1, 3], parts.vae.encode(normal).latent_dist.mode()[0], atol=1e-5)


def test_coarsened_masks_show_one_pixel_of_four():
    masks = torch.arange(16).view(1, 4, 4)
    coarse = coarsened(masks, torch.Generator().manual_seed(0))
    assert coarse.shape == masks.shape and len(coarse.unique()) == 4
    blocks = coarse.view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    assert (blocks == blocks[:, :1]).all()
    assert all(
        block[0] in masks.view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)[i]
        for i, block in enumerate(blocks)
    )


def test_min_snr_weights(setting):
    stage = make_stage(setting, min_snr=5.0)
    snr = stage.alphas / (1 - stage.alphas)
    assert stage.weights[-1] == 1  # mostly noise
    assert torch.isclose(stage.weights[0], 5 / snr[0])


def test_tokens_follow_the_captions(setting):
    stage = make_stage(setting)
    _, data, parts, _ = setting
    decode = parts.tokenizer.decode
    assert decode(stage.tokens[stage.text_rows[0, 2, 0]], skip_special_tokens=True).startswith(
        "a portrait of a middle"
    )
    row = stage.tokens[stage.text_rows[1, 2, 0]]
    assert decode(row, skip_special_tokens=True).startswith(NORMAL_PREFIX + " a portrait")
    assert normal_caption(data.captions[0]).startswith(NORMAL_PREFIX)
    assert (row == parts.tokenizer.eos_token_id).any()  # not cut short


def test_retold_captions_are_drawn_beside_their_own(setting):
    config, data, parts, latents = setting
    told = tuple((f"a {i} person", f"a {i} man") for i in range(len(data)))
    retold = (config, dataclasses.replace(data, retold=told), parts, latents)
    stage = make_stage(retold)
    assert stage.text_rows.shape == (2, len(data), 3)
    seen = set()
    stage._predict = lambda module, noisy, t, tokens, masks, seen_: (
        seen.update(map(tuple, tokens.tolist())) or noisy
    )
    for trial in range(40):
        stage.losses(None, torch.Generator().manual_seed(trial))
    texts = set(map(tuple, stage.tokens.tolist()))
    assert seen <= texts and len(seen) > len(data)


def test_loss_reaches_text_encoder_unet_and_controlnet(setting):
    module = modules(setting)
    stage = make_stage(setting, drop_mask=0.0, drop_caption=0.0)
    loss = stage.losses(module, torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    for name in module:
        assert sum(p.grad.abs().sum() for p in module[name].parameters() if p.grad is not None) > 0, name
    assert torch.equal(loss, stage.losses(module, torch.Generator().manual_seed(0))["loss"])


def test_nothing_of_a_step_stays_behind_on_the_cpu(setting):
    """'meta' stands for any other device: mixing devices, and reading values, are errors there too."""
    config, data, parts, latents = setting
    told = tuple(("a person", "a man") for _ in range(len(data)))
    moved = (config, dataclasses.replace(data, retold=told).to("meta"), parts, latents.to("meta"))
    module = copy.deepcopy(modules(setting)).to("meta")
    losses = make_stage(moved).losses(module, torch.Generator().manual_seed(0))
    assert {value.device.type for value in losses.values()} == {"meta"}
    losses["loss"].backward()


def test_means_of_pictures_and_of_normal_maps():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert _mean(values, torch.tensor([True, False, True])) == 2.5
    assert _mean(values, torch.zeros(3, dtype=torch.bool)).isnan()


def test_a_dropped_mask_silences_the_controlnet(setting):
    module = modules(setting)
    dropped = make_stage(setting, drop_mask=1.0)
    before = dropped.losses(module, torch.Generator().manual_seed(1))["loss"]
    dropped.data = dataclasses.replace(dropped.data, masks=torch.zeros_like(dropped.data.masks))
    assert torch.equal(before, dropped.losses(module, torch.Generator().manual_seed(1))["loss"])
    seen = make_stage(setting, drop_mask=0.0)
    assert not torch.equal(before, seen.losses(module, torch.Generator().manual_seed(1))["loss"])
