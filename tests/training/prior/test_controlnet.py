"""The mask ControlNet for a model that stays as it is, on tiny bases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from datasets.masked_images import MaskedImages
from dnnlib import config as config_files
from dnnlib.errors import UserError
from tests.stable_diffusion_files import write_stable_diffusion
from train_prior import main
from training.prior import controlnet as module
from training.prior.config import ControlNetConfig
from training.prior.controlnet import ControlNetStage, new_controlnet, train_controlnet
from training.prior.load import load_prior
from training.prior.loop import step_generator
from training.prior.models import build_parts, save_parts, words_of

WORDS = words_of(["a portrait of a middle-aged woman with black blond red hair", "a portrait of a person"])
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tiny_config, tmp_path_factory) -> Path:
    """A small prior; its own ControlNet is not used."""
    folder = tmp_path_factory.mktemp("base") / "prior"
    save_parts(build_parts(tiny_config, WORDS), folder, tiny_config, {})
    return folder


@pytest.fixture(scope="module")
def config(toy_set) -> ControlNetConfig:
    return config_files.load(
        ControlNetConfig,
        {
            "data": str(toy_set),
            "optimiser": {"kimg": 0.016, "batch": 4, "lr": 1e-2, "warmup": 1},
            "snapshot_kimg": 0.008,
            "log_kimg": 0.004,
            "grid_masks": 2,
            "grid_steps": 2,
            "workers": 2,
        },
    )


@pytest.fixture(scope="module")
def trained(config, base, tmp_path_factory) -> tuple[Path, Path]:
    outdir = tmp_path_factory.mktemp("run")
    return outdir, train_controlnet(config, str(base), outdir)


def stage_of(config, base, dtype=torch.float32) -> ControlNetStage:
    prior = load_prior(base, dtype=dtype)
    data = MaskedImages(config.data, None, config.labels, prior.image_size, mirror=True, extras=("caption",))
    return ControlNetStage(config, prior, data)


def test_at_first_it_changes_nothing(config, base) -> None:
    """Its zero convolutions: the loss is the base's own, and only they have a gradient."""
    stage = stage_of(config, base)
    fresh = torch.nn.ModuleDict({"controlnet": new_controlnet(stage.prior).requires_grad_(True)})
    silent = torch.nn.ModuleDict({"controlnet": new_controlnet(stage.prior)})
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    loss = stage.losses(fresh, step_generator(0, "x", 0))["loss"]
    torch.testing.assert_close(loss, stage.losses(silent, step_generator(0, "x", 0))["loss"])
    loss.backward()
    moved = {name for name, p in fresh.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved and all("controlnet_down_blocks" in n or "controlnet_mid_block" in n for n in moved)
    assert all(p.grad is None for p in stage.prior.parameters())


def test_a_half_precision_base_as_on_cuda(config, base) -> None:
    """Frozen base in bfloat16, ControlNet in float32: the same loss to 8 bits, gradients in float32."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        stage = stage_of(config, base, dtype)
        module_ = torch.nn.ModuleDict(
            {"controlnet": new_controlnet(stage.prior).float().requires_grad_(True)}
        )
        loss = stage.losses(module_, step_generator(0, "x", 0))["loss"]
        loss.backward()
        gradients = [p.grad for p in module_.parameters() if p.grad is not None]
        assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_run_leaves_a_controlnet_for_its_base(trained, base, config) -> None:
    outdir, folder = trained
    assert config_files.load(ControlNetConfig, outdir / "config.json") == config
    curves = [json.loads(line) for line in (outdir / "curves.jsonl").read_text().splitlines()]
    assert curves[-1]["kimg"] == 0.016 and all(line["stage"] == "controlnet" for line in curves)
    assert Image.open(outdir / "grids" / "samples_final.png").size == (5 * 32, 2 * 32)
    facts = json.loads((folder / "training.json").read_text())
    assert facts["pictures"] == 3 * 2 and facts["base"] == str(base) and facts["resolution"] == 16
    prior = load_prior(base, controlnet=folder)
    start = new_controlnet(prior).state_dict()
    learned = prior.controlnet.state_dict()
    assert any((learned[n] - start[n]).abs().max() > 1e-4 for n in learned if "controlnet_mid_block" in n)
    again = load_prior(base).unet.state_dict()  # the folder of the base is as it was
    assert all(torch.equal(value, again[name]) for name, value in prior.unet.state_dict().items())


def test_resuming_gives_the_same_weights(trained, config, base, tmp_path, monkeypatch) -> None:
    class Interrupted(Exception):
        pass

    saved = module.save_state

    def save_and_stop(outdir, state):
        saved(outdir, state)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", save_and_stop)
        with pytest.raises(Interrupted):
            train_controlnet(config, str(base), tmp_path)
    folder = train_controlnet(config, str(base), tmp_path, resume=tmp_path)
    resumed, whole = load_file(folder / WEIGHTS), load_file(trained[1] / WEIGHTS)
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_it_learns(config, base) -> None:
    """Some steps on one batch bring its loss below the base's."""
    stage = stage_of(config, base)
    modules = torch.nn.ModuleDict({"controlnet": new_controlnet(stage.prior).requires_grad_(True)})
    optimiser = torch.optim.Adam(modules.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = stage.losses(modules, step_generator(0, "x", 0))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_stable_diffusion_from_a_zip_on_the_command_line(toy_set, tmp_path) -> None:
    """The class layout of Stable Diffusion 1.5 at 64 pixels, a set in a zip, captions that are missing."""
    folder, _ = write_stable_diffusion(tmp_path)
    data = tmp_path / "data"
    for kind, how in (("images", Image.Resampling.BICUBIC), ("masks", Image.Resampling.NEAREST)):
        (data / kind).mkdir(parents=True)
        for path in sorted((toy_set / kind).iterdir()):
            Image.open(path).resize((64, 64), how).save(data / kind / path.name)
    labels = json.loads((toy_set / "dataset.json").read_text())["labels"]
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    shutil.make_archive(str(tmp_path / "ffhq-mask"), "zip", data)
    run = [
        "--controlnet-only",
        "--base",
        folder,
        "--data",
        tmp_path / "ffhq-mask.zip",
        "--outdir",
        tmp_path / "run",
    ]
    short = [
        "--kimg",
        0.004,
        "--batch",
        2,
        "--device",
        "cpu",
        "--set",
        "grid_steps=1",
        "--set",
        "grid_masks=1",
    ]
    checkpointing = ["--set", "checkpointing=true"]
    result = CliRunner().invoke(main, [str(word) for word in (*run, *short, *checkpointing)])
    assert result.exit_code == 0, result.output
    assert f"ControlNet: {tmp_path / 'run' / 'controlnet'}" in result.output
    prior = load_prior(folder, controlnet=tmp_path / "run" / "controlnet")
    assert prior.controlnet.config.conditioning_embedding_out_channels == [16, 32, 96, 256]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controlnet-only"], "--controlnet-only needs --base"),
        (["--masks", "x"], "--masks is for --controlnet-only"),
        (["--base", "x"], "--base x: no small prior"),
        (["--controlnet-only", "--base", "x", "--vae-kimg", "1"], "--vae-kimg is not for --controlnet-only"),
        (["--controlnet-only", "--base", "./absent", "--data", "x"], "there is no folder ./absent"),
        (["--controlnet-only", "--base", "x"], "no pictures to learn from"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path) -> None:
    result = CliRunner().invoke(main, ["--outdir", str(tmp_path / "run"), *options])
    assert result.exit_code == 2 and message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_states_of_other_trainings_are_refused(config, base, tmp_path) -> None:
    module.save_state(tmp_path, {"stage": "diffusion"})
    with pytest.raises(UserError, match="state of another training"):
        train_controlnet(config, str(base), tmp_path / "run", resume=tmp_path)
