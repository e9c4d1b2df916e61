import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL

from datasets.labels import label_set
from dnnlib.errors import UserError
from tests.stable_diffusion_files import write_stable_diffusion
from training.prior import load
from training.prior.load import PriorMemory, default_dtype, load_prior, quickest_predictions
from training.prior.models import build_parts, words_of
from training.prior.prior import NORMAL_PREFIX, prior_of

LABELS = label_set("ffhq-mask")


@pytest.fixture(scope="module")
def prior(tiny_config):
    torch.manual_seed(0)
    parts = build_parts(tiny_config, words_of(["a woman with red hair", "a man, smiling"]))
    return prior_of(parts)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """Folders of Stable Diffusion 1.5's class layout with tiny widths, and of a ControlNet."""
    return write_stable_diffusion(tmp_path_factory.mktemp("hub"))


def test_sizes(prior):
    assert (prior.image_size, prior.latent_size, prior.latent_channels, prior.timesteps) == (16, 4, 4, 1000)
    assert prior.alphas_cumprod[-1] < 0.01  # almost nothing but noise at T
    assert not any(p.requires_grad for p in prior.parameters())


def test_encode_is_differentiable_and_resizes(prior):
    picture = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    latents = prior.encode(picture)
    assert latents.shape == (2, 4, 4, 4) and latents.dtype == torch.float32
    latents.square().sum().backward()
    assert torch.isfinite(picture.grad).all() and (picture.grad.abs().sum(dim=1) > 0).all()


def test_latents_are_scaled(prior):
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    before = prior.encode(picture)
    old = prior.vae.config.scaling_factor
    prior.vae.register_to_config(scaling_factor=2 * old)
    try:
        torch.testing.assert_close(prior.encode(picture), 2 * before)
        torch.testing.assert_close(prior.decode(2 * before), prior.vae.decode(before / old).sample)
    finally:
        prior.vae.register_to_config(scaling_factor=old)


def test_condition_is_the_palette_enlarged_without_new_colours(prior):
    mask = torch.randint(LABELS.count, (2, 8, 8))
    condition = prior.condition(mask, LABELS)
    assert condition.shape == (2, 3, 16, 16)
    expected = torch.from_numpy(LABELS.colourise(mask.numpy())).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(condition[..., ::2, ::2], expected)
    torch.testing.assert_close(condition[..., 1::2, 1::2], expected)


def test_predict_noise_is_the_definition_of_guidance(prior):
    latents, t = torch.randn(2, 4, 4, 4), torch.tensor([500, 20])
    text, negative = prior.embed(["a man, smiling", "a woman with red hair"]), prior.embed(["red hair"])
    condition = prior.condition(torch.randint(LABELS.count, (2, 16, 16)), LABELS)
    guided = prior.predict_noise(latents, t, text, condition, guidance_scale=7.5, negative=negative)

    def alone(embedding):
        down, mid = prior.controlnet(latents, t, embedding, condition, return_dict=False)
        return prior.unet(
            latents, t, embedding, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    with torch.no_grad():
        with_prompt, without = alone(text), alone(negative.expand(2, -1, -1))
    close = {"atol": 1e-5, "rtol": 1e-4}  # one batch of four against two of two
    torch.testing.assert_close(guided.conditional, with_prompt, **close)
    torch.testing.assert_close(guided.unconditional, without, **close)
    torch.testing.assert_close(guided.noise, without + 7.5 * (with_prompt - without), **close)
    plain = prior.predict_noise(latents, t, text, condition, guidance_scale=None)
    torch.testing.assert_close(plain.noise, with_prompt, **close)
    with pytest.raises(ValueError, match="guidance_scale=None"):
        plain.direction  # noqa: B018


def test_mask_matters_and_may_be_left_out(prior):
    latents, t, text = torch.randn(1, 4, 4, 4), torch.tensor([500]), prior.embed(["a man"])
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    results = [
        prior.predict_noise(latents, t, text, condition, guidance_scale=None).noise
        for condition in (None, prior.condition(masks, LABELS), prior.condition(masks + 13, LABELS))
    ]
    assert (results[1] - results[2]).abs().max() > 1e-4 and (results[0] - results[1]).abs().max() > 1e-4


def test_default_negatives(prior):
    assert prior.negative_prompt(normals=False) == ""
    assert prior.negative_prompt(normals=True) == NORMAL_PREFIX


def test_add_noise(prior):
    z, noise, t = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([3, 800])
    torch.testing.assert_close(prior.add_noise(z, noise, t), prior.scheduler.add_noise(z, noise, t))


def test_sampling_is_deterministic(prior):
    condition = prior.condition(torch.zeros(2, 16, 16, dtype=torch.long), LABELS)
    prompts = ["a man", f"{NORMAL_PREFIX} a man"]
    first, second, other = (prior.sample(prompts, condition, steps=2, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (2, 3, 16, 16)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_unknown_words_are_warned_about(prior):
    with pytest.warns(UserWarning, match="'zebra'.*It knows.*Stable Diffusion"):
        embedding = prior.embed(["a zebra man"])
    torch.testing.assert_close(embedding, prior.embed(["a man"]))


def test_velocity_predictions_become_noise(prior):
    latents, t, text = torch.randn(1, 4, 4, 4), torch.tensor([300]), prior.embed(["a man"])
    output = prior.predict_noise(latents, t, text, None, guidance_scale=None).noise
    prior.scheduler.register_to_config(prediction_type="v_prediction")
    try:
        noise = prior.predict_noise(latents, t, text, None, guidance_scale=None).noise
    finally:
        prior.scheduler.register_to_config(prediction_type="epsilon")
    alpha = prior.alphas_cumprod[300]
    z = alpha.sqrt() * latents - (1 - alpha).sqrt() * output  # the clean latents that v = output means
    torch.testing.assert_close(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, latents)


def test_stable_diffusion_loads_by_the_same_code(stable_diffusion):
    folder, control = stable_diffusion
    with_masks = load_prior(folder, controlnet=control)
    assert with_masks.image_size == 64 and with_masks.negative_prompt(normals=True) == ""
    condition = with_masks.condition(torch.zeros(1, 64, 64, dtype=torch.long), LABELS)
    latents = with_masks.encode(torch.rand(1, 3, 64, 64))
    assert latents.shape == (1, 4, 8, 8)
    text = with_masks.embed(["a zebra in the rain"])  # an open vocabulary: no warning
    prediction = with_masks.predict_noise(latents, torch.tensor([10]), text, condition, guidance_scale=7.5)
    assert prediction.noise.shape == latents.shape
    assert with_masks.sample(["a cat"], condition, steps=2).shape == (1, 3, 64, 64)

    without = load_prior(folder)
    assert without.controlnet is None
    with pytest.warns(UserWarning, match="no ControlNet"):
        assert without.condition(torch.zeros(1, 64, 64, dtype=torch.long), LABELS) is None
    with pytest.raises(UserError, match="no ControlNet"):
        without.predict_noise(latents, torch.tensor([10]), text, condition, guidance_scale=None)


def test_half_precision_keeps_latents_in_float32(stable_diffusion):
    prior = load_prior(*stable_diffusion, dtype=torch.bfloat16)
    assert prior.dtype == torch.bfloat16
    latents = prior.encode(torch.rand(1, 3, 64, 64))
    condition = prior.condition(torch.zeros(1, 64, 64, dtype=torch.long), LABELS)
    noise = prior.predict_noise(
        latents, torch.tensor([10]), prior.embed(["a cat"]), condition, guidance_scale=7.5
    ).noise
    assert latents.dtype == noise.dtype == torch.float32


def test_wrong_paths_and_folders_are_one_line(tmp_path, stable_diffusion):
    with pytest.raises(UserError, match="there is no folder"):
        load_prior(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load vae"):
        load_prior(tmp_path / "empty")
    with pytest.raises(UserError, match="--controlnet"):
        load_prior(stable_diffusion[0], controlnet=tmp_path / "absent")


def test_predictions_alone_can_be_in_bfloat16(stable_diffusion):
    exact, quick = load_prior(*stable_diffusion), load_prior(*stable_diffusion, predictions=torch.bfloat16)
    assert quick.dtype == next(quick.controlnet.parameters()).dtype == torch.bfloat16
    picture, mask = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randint(LABELS.count, (2, 64, 64))
    assert torch.equal(quick.encode(picture), exact.encode(picture))  # gradients go through this
    latents, t, found = torch.randn(2, 4, 8, 8), torch.tensor([900, 20]), []
    for prior in (exact, quick):
        text, condition = prior.embed(["a man", "red hair"]), prior.condition(mask, LABELS)
        seen = prior.predict_noise(latents, t, text, condition, guidance_scale=1.0)
        assert seen.conditional.dtype == torch.float32
        found.append(seen.conditional)
    # 8 bits of mantissa, in every layer
    assert 0 < (found[1] - found[0]).norm() < 0.03 * found[0].norm()


def test_noise_of_a_v_prediction_is_made_of_exact_latents(stable_diffusion, monkeypatch):
    prior = load_prior(*stable_diffusion, predictions=torch.bfloat16)
    monkeypatch.setattr(
        prior, "scheduler", SimpleNamespace(config=SimpleNamespace(prediction_type="v_prediction"))
    )
    nothing = SimpleNamespace(sample=torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16))
    monkeypatch.setattr(prior.unet, "forward", lambda *_, **__: nothing)
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([900, 20])
    noise = prior.predict_noise(latents, t, prior.embed(["a man"]), None, guidance_scale=None).noise
    assert torch.equal(noise, (1 - prior.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1) * latents)


def test_bfloat16_is_for_cpus_that_multiply_it(monkeypatch):
    for multiplies, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda multiplies=multiplies: multiplies)
        assert quickest_predictions("cpu") == expected
        assert quickest_predictions("cuda:0") is None
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert quickest_predictions("cpu") is None


def test_a_freed_text_encoder_leaves_what_was_kept(stable_diffusion):
    prior = load_prior(*stable_diffusion)
    text, nothing = prior.embed(["a cat"]), prior.embed([""])
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([10])
    before = prior.predict_noise(latents, t, text, None, guidance_scale=7.5).noise
    parameters = sum(p.numel() for p in prior.parameters())
    prior.free_text_encoder()
    assert sum(p.numel() for p in prior.parameters()) < parameters
    torch.testing.assert_close(prior.embed([""]), nothing)
    torch.testing.assert_close(prior.predict_noise(latents, t, text, None, guidance_scale=7.5).noise, before)
    with pytest.raises(ValueError, match="'a dog' was not kept"):
        prior.embed(["a dog"])


def test_attention_slicing_changes_nothing(stable_diffusion):
    plain = load_prior(*stable_diffusion)
    sliced = load_prior(*stable_diffusion, memory=PriorMemory(attention_slicing=True))
    kinds = {type(p).__name__ for p in sliced.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"} != {type(p).__name__ for p in plain.unet.attn_processors.values()}
    latents, t, text = torch.randn(2, 4, 8, 8), torch.tensor([10]), plain.embed(["a cat"])
    condition = plain.condition(torch.randint(LABELS.count, (2, 64, 64)), LABELS)
    one, other = (
        p.predict_noise(latents, t, text, condition, guidance_scale=7.5).noise for p in (plain, sliced)
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # another order of summation


def test_tiling_encodes_in_pieces(stable_diffusion):
    """Tiles have normalisations of their own, so their latents differ; shapes and gradients do not."""
    tiled = load_prior(*stable_diffusion, memory=PriorMemory(vae_tiling=True))
    seen = []
    tiled.vae.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[-1]))
    picture = torch.rand(1, 3, 64, 64, requires_grad=True)
    latents = tiled.encode(picture)
    assert max(seen) == 32 and len(seen) > 4 and latents.shape == (1, 4, 8, 8)
    latents.sum().backward()
    assert (picture.grad != 0).any(1).float().mean() > 0.99
    assert tiled.decode(latents.detach()).shape == (1, 3, 64, 64)


def test_only_safetensors_are_read(stable_diffusion, tmp_path):
    folder, control = stable_diffusion
    for name in ("unet", "text_encoder"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        for file in (copy / name).glob("*.safetensors"):
            file.rename(file.with_suffix(".bin"))
        with pytest.raises(UserError, match=f"{name} of .*could run code when read; only safetensors"):
            load_prior(copy)


def test_half_precision_variants_are_found(stable_diffusion, tmp_path):
    folder, control = stable_diffusion
    shutil.copytree(folder, tmp_path / "sd")
    for file in (tmp_path / "sd").glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    one, other = load_prior(folder).state_dict(), load_prior(tmp_path / "sd").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["stable-diffusion-v1-5", "Ellis/MaTe3D", "Ellis/MaTe3D/controlnet/faces"])
def test_names_of_the_hub_without_a_network(name, tmp_path, monkeypatch):
    asked = {}

    def absent(source, **options):
        asked.update(options, source=source)
        raise OSError("we couldn't connect\nto the Hub")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", absent)
    with pytest.raises(UserError, match="hf download .* --local-dir FOLDER") as error:
        load_prior(name)
    assert "\n" not in str(error.value) and asked["use_safetensors"] is True
    if name == "stable-diffusion-v1-5":
        assert asked["source"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    if name.endswith("faces"):
        assert (asked["source"], asked["subfolder"]) == ("Ellis/MaTe3D", "controlnet/faces/vae")


@pytest.mark.parametrize("lost", [True, False])
def test_the_hub_is_not_tried_where_no_way_leads_to_it(lost, monkeypatch):
    asked = {}

    def absent(source, **options):
        asked.update(options)
        raise OSError("no file named config.json")

    monkeypatch.setattr(load, "hub_leads_nowhere", lambda: lost)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", absent)
    reason = "there is no way to the Hub, and it was not fetched before" if lost else "no file named"
    with pytest.raises(UserError, match=reason):
        load_prior("Ellis/MaTe3D")
    assert asked.get("local_files_only", False) == lost


def test_the_512_pixels_of_stable_diffusion(tmp_path):
    """Pictures of any side are brought to 512, and masks without a new colour; gradients come back."""
    prior = load_prior(*write_stable_diffusion(tmp_path, side=512))
    assert (prior.image_size, prior.latent_size) == (512, 64)
    picture = torch.rand(1, 3, 128, 128, requires_grad=True)
    latents = prior.encode(picture)
    assert latents.shape == (1, 4, 64, 64)
    latents.square().sum().backward()
    assert (picture.grad.abs().sum(1) > 0).all()
    masks = torch.randint(LABELS.count, (1, 512, 512))
    condition = prior.condition(masks, LABELS)
    expected = torch.from_numpy(LABELS.colourise(masks.numpy())).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(condition, expected)  # the palette of method section 1, in [0, 1]
    text = prior.embed(["a cat"])
    noise = prior.predict_noise(
        latents.detach(), torch.tensor([500]), text, condition, guidance_scale=None
    ).noise
    assert noise.shape == latents.shape


def test_half_precision_is_for_cuda():
    assert default_dtype("cuda:1") == torch.float16 and default_dtype("cpu") == torch.float32


@pytest.mark.cuda
def test_half_precision_on_cuda(stable_diffusion):
    exact, half = load_prior(*stable_diffusion), load_prior(*stable_diffusion, device="cuda")
    assert half.dtype == half.vae.dtype == torch.float16
    picture = torch.rand(1, 3, 64, 64)
    gradients = []
    for prior in (exact, half):
        leaf = picture.to(prior.device).requires_grad_()
        (1e-8 * prior.encode(leaf).square().sum()).backward()
        gradients.append(leaf.grad.cpu() * 1e8)
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.02 * gradients[0].abs().max(), rtol=0.05)
