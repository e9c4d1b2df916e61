import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dnnlib import config as config_files
from dnnlib.errors import UserError
from train_prior import main
from training.prior.config import PriorConfig
from training.prior.load import load_prior
from training.prior.loop import StageTrainer, save_state
from training.prior.train import train_prior, words_of_base


def longer(config, kimg):
    optimiser = dataclasses.replace(config.diffusion.optimiser, kimg=kimg)
    return dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, optimiser=optimiser))


def with_vae_kimg(config, kimg):
    optimiser = dataclasses.replace(config.autoencoder.optimiser, kimg=kimg)
    return dataclasses.replace(
        config, autoencoder=dataclasses.replace(config.autoencoder, optimiser=optimiser)
    )


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("run")
    return outdir, train_prior(tiny_config, outdir)


def test_a_run_leaves_a_prior_curves_grids_and_state(trained, tiny_config):
    outdir, folder = trained
    assert config_files.load(type(tiny_config), outdir / "config.json") == tiny_config
    curves = [json.loads(line) for line in (outdir / "curves.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in curves} == {"autoencoder", "diffusion"}
    for name in ("autoencoder_final.png", "samples_final.png", "samples_final.json", "prompts.png"):
        assert (outdir / "grids" / name).is_file(), name
    facts = json.loads((folder / "prior.json").read_text())
    assert facts["pictures"] == 6 and facts["diffusion"]["kimg"] == 0.016 and "hair" in facts["words"]
    prior = load_prior(folder)
    assert prior.image_size == tiny_config.resolution
    assert prior.encode(torch.rand(8, 3, 16, 16) * 2 - 1).std() < 10  # scaled by the set's own latents


def test_a_finished_prior_is_a_start(trained, tiny_config, tmp_path):
    folder = train_prior(with_vae_kimg(tiny_config, 0.0), tmp_path / "run", base=trained[1])
    vae, unet = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("vae", "unet"))
    before, after = load_file(trained[1] / vae), load_file(folder / vae)
    assert all(torch.equal(before[key], after[key]) for key in before)
    before, after = load_file(trained[1] / unet), load_file(folder / unet)
    moved = [(before[key].float() - after[key].float()).abs().max() for key in before]
    # four steps of about the learning rate each at most, which comes down, and the rounding of float16 files
    assert 0 < max(moved) < 4 * tiny_config.diffusion.optimiser.lr
    curves = [json.loads(line) for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in curves} == {"diffusion"}
    assert json.loads((folder / "prior.json").read_text())["base"]["diffusion"]["kimg"] == 0.016


def test_the_autoencoder_of_a_start_can_go_on(trained, tiny_config, tmp_path):
    folder = train_prior(tiny_config, tmp_path / "run", base=trained[1])
    name = "vae/diffusion_pytorch_model.safetensors"
    before, after = load_file(trained[1] / name), load_file(folder / name)
    moved = [(before[key].float() - after[key].float()).abs().max() for key in before]
    steps = round(1000 * tiny_config.autoencoder.optimiser.kimg / tiny_config.autoencoder.optimiser.batch)
    assert 0 < max(moved) < steps * tiny_config.autoencoder.optimiser.lr  # from there, not from nothing
    facts = json.loads((folder / "prior.json").read_text())
    assert facts["autoencoder"]["kimg"] == facts["base"]["autoencoder"]["kimg"]


def test_a_start_may_know_more_words_but_not_fewer(trained, tiny_config, tmp_path):
    needed = ("a", "blond", "hair", "portrait")
    known = words_of_base(trained[1], needed)
    assert (
        set(needed) < set(known)
        and list(known) == json.loads((trained[1] / "prior.json").read_text())["words"]
    )
    with pytest.raises(UserError, match="does not know fez of these captions"):
        words_of_base(trained[1], (*needed, "fez"))


@pytest.mark.parametrize(("kimg", "shares"), [(0.016, (6.0, 18.0)), (0.0, (0.0, 24.0))])
def test_an_autoencoder_that_stays_takes_none_of_the_minutes(
    trained, tiny_config, tmp_path, monkeypatch, kimg, shares
):
    seconds = {}

    class Timed(StageTrainer):
        def train(self, *rest):
            seconds[self.name] = self.seconds
            self.progress.images = 1

    monkeypatch.setattr("training.prior.train.StageTrainer", Timed)
    config = with_vae_kimg(dataclasses.replace(tiny_config, minutes=0.4), kimg)
    autoencoder = dataclasses.replace(config.autoencoder, time_share=0.25)
    train_prior(dataclasses.replace(config, autoencoder=autoencoder), tmp_path / "run", base=trained[1])
    assert seconds.get("autoencoder", 0.0) == pytest.approx(shares[0])
    assert seconds["diffusion"] == pytest.approx(shares[1])


def first_losses(outdir):
    """The first line of each stage's curves: that of the first step, of as many pictures as are logged."""
    lines = [json.loads(line) for line in (outdir / "curves.jsonl").read_text().splitlines()]
    return {line["stage"]: line["loss"] for line in reversed(lines)}


@pytest.mark.cuda
def test_cuda_trains_resumes_and_begins_as_the_cpu_does(trained, tiny_config, tmp_path):
    folder = train_prior(tiny_config, tmp_path / "run", device="cuda")
    here, there = first_losses(trained[0]), first_losses(tmp_path / "run")
    # the same weights and random numbers; convolutions multiply in TF32, with ten bits of mantissa
    assert here["autoencoder"] == pytest.approx(there["autoencoder"], rel=0.01)
    # four steps of the autoencoder further, with Adam's steps as long for any gradient
    assert here["diffusion"] == pytest.approx(there["diffusion"], rel=0.1)
    assert {
        value.device.type for value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()
    } == {"cpu"}
    further = train_prior(
        longer(tiny_config, 0.024), tmp_path / "run", resume=tmp_path / "run", device="cuda"
    )
    assert json.loads((further / "prior.json").read_text())["diffusion"]["kimg"] == 0.024
    load_prior(further).encode(torch.rand(1, 3, 16, 16))
    based = train_prior(tiny_config, tmp_path / "based", base=folder, device="cuda")
    assert json.loads((based / "prior.json").read_text())["base"]["diffusion"]["kimg"] == 0.016


def test_a_start_of_other_sizes_is_refused(trained, tiny_config, tmp_path):
    wider = dataclasses.replace(tiny_config.diffusion, channels=(16, 24))
    with pytest.raises(UserError, match="unet has other sizes"):
        train_prior(dataclasses.replace(tiny_config, diffusion=wider), tmp_path / "run", base=trained[1])
    for options, said in ((["--base", str(tmp_path)], "no small prior"),):
        result = CliRunner().invoke(main, ["--data", "x", "--outdir", str(tmp_path / "run"), *options])
        assert result.exit_code == 2 and said in result.output and not (tmp_path / "run").exists()


def test_resuming_from_the_middle_gives_the_same_prior(trained, tiny_config, tmp_path, monkeypatch):
    from training.prior import train

    saved = train.PriorTraining._save_state

    def save_and_stop(self, trainer, extra):
        saved(self, trainer, extra)
        if trainer.name == "diffusion":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.PriorTraining, "_save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_prior(tiny_config, tmp_path / "run")
    folder = train_prior(tiny_config, tmp_path / "run", resume=tmp_path / "run")
    for part in ("unet", "controlnet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        resumed, whole = load_file(folder / file), load_file(trained[1] / file)
        assert all(torch.equal(resumed[key], whole[key]) for key in whole), part


def test_a_finished_run_can_be_made_longer(trained, tiny_config, tmp_path):
    folder = train_prior(longer(tiny_config, 0.024), tmp_path / "run", resume=trained[0])
    assert json.loads((folder / "prior.json").read_text())["diffusion"]["kimg"] == 0.024


def test_resuming_from_something_else(tiny_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        train_prior(tiny_config, tmp_path, resume=tmp_path)
    save_state(tmp_path, {"stage": "controlnet"})
    with pytest.raises(UserError, match="--controlnet-only"):
        train_prior(tiny_config, tmp_path, resume=tmp_path)


def test_resuming_takes_the_configuration_of_the_run(trained, tmp_path, monkeypatch):
    seen = []

    def record(config, *rest):
        seen.append(config)
        return tmp_path

    monkeypatch.setattr("train_prior.train_prior", record)
    result = CliRunner().invoke(main, ["--outdir", str(tmp_path), "--resume", str(trained[0]), "--kimg", "7"])
    assert result.exit_code == 0, result.output
    saved = config_files.load(PriorConfig, trained[0] / "config.json")
    assert seen == [longer(saved, 7.0)]


def test_command_line_errors_are_one_line(tmp_path):
    result = CliRunner().invoke(main, ["--outdir", str(tmp_path / "run")])
    assert result.exit_code == 2 and "--data" in result.output and "Traceback" not in result.output
    result = CliRunner().invoke(main, ["--outdir", str(tmp_path / "run"), "--set", "diffusion.head=3"])
    assert result.exit_code == 2 and "diffusion.heads" in result.output
    for option, message in (
        ("--lr=-1", "lr is -1"),
        ("--batch=0", "batch is 0"),
        ("--kimg=-1", "kimg is -1"),
    ):
        result = CliRunner().invoke(main, ["--outdir", str(tmp_path / "run"), option])
        assert result.exit_code == 2 and message in result.output
