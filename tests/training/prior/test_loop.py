import json
import os
import signal

import pytest
import torch

from dnnlib.errors import UserError
from training.curves import read_curves
from training.prior.config import OptimiserConfig
from training.prior.loop import Curves, StageTrainer, Stopped, refuse_other_run, save_state, step_generator


class Line:
    """Fit y = 2 x."""

    def losses(self, module, generator):
        x = torch.rand(4, 1, generator=generator)
        loss = (module["line"](x) - 2 * x).square().mean()
        return {"loss": loss}


class Broken:
    def losses(self, module, generator):
        return {"loss": module["line"].weight.sum() * float("nan")}


def make_trainer(kimg=0.4, **options):
    torch.manual_seed(0)
    config = OptimiserConfig(kimg=kimg, batch=4, lr=0.1, warmup=1)
    return StageTrainer("line", {"line": torch.nn.Linear(1, 1)}, config, seed=0, **options)


def test_learns_and_writes_curves(tmp_path):
    trainer = make_trainer()
    trainer.train(Line(), Curves(tmp_path / "curves.jsonl"), 0.1, lambda progress: None)
    lines = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.1, 0.2, 0.3, 0.4]
    assert lines[-1]["loss"] < lines[0]["loss"] / 10
    assert abs(float(trainer.average["line"].weight) - 2) < 0.2
    assert trainer.optimiser.param_groups[0]["lr"] < 1e-3  # the cosine has come down


def test_resumed_equals_uninterrupted(tmp_path):
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    curves = Curves(tmp_path / "c.jsonl")
    whole.train(Line(), curves, 1, lambda progress: None)
    state = {}

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 37:
            state.update(first.state())
            raise Stop

    with pytest.raises(Stop):
        first.train(Line(), curves, 1, stop)
    second.load_state(state)
    second.train(Line(), curves, 1, lambda progress: None)
    assert second.progress.step == whole.progress.step
    assert torch.equal(second.live["line"].weight, whole.live["line"].weight)
    assert torch.equal(second.average["line"].weight, whole.average["line"].weight)


def test_a_resumed_run_has_the_options_of_its_configuration():
    before, after = make_trainer(), make_trainer()
    (group,) = after.optimiser.param_groups
    group.update(betas=(0.5, 0.9), weight_decay=0.5)
    after.load_state(before.state())
    (group,) = after.optimiser.param_groups
    assert group["betas"] == (0.5, 0.9) and group["weight_decay"] == 0.5


def test_a_signal_ends_the_run_with_its_state(tmp_path):
    trainer, curves, saved = make_trainer(), Curves(tmp_path / "c.jsonl"), []

    def on_step(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.stopping:
            saved.append(progress.step)

    with pytest.raises(Stopped):
        trainer.train(Line(), curves, 0.004, on_step)
    assert saved == [6] and not trainer.progress.done
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_curves_go_on_where_the_state_does(tmp_path):
    curves = Curves(tmp_path / "c.jsonl")
    for stage, kimg in (("a", 1.0), ("line", 0.1), ("line", 0.2), ("line", 0.3), ("z", 0.1)):
        curves.write(stage=stage, kimg=kimg)
    curves.rewind("line", 0.2)
    assert [(line["stage"], line["kimg"]) for line in read_curves(curves.path)] == [
        ("a", 1.0),
        ("line", 0.1),
        ("line", 0.2),
    ]


def test_folder_of_another_run_is_refused(tmp_path):
    save_state(tmp_path, {"stage": "line"})
    refuse_other_run(tmp_path, tmp_path)
    refuse_other_run(tmp_path / "new", tmp_path)
    for resume in (None, tmp_path / "elsewhere" / "state.safetensors"):
        with pytest.raises(UserError, match="holds a run already"):
            refuse_other_run(tmp_path, resume)


def test_time_limit_ends_the_stage(tmp_path):
    trainer = make_trainer(kimg=1e6, seconds=0.2)
    trainer.train(Line(), Curves(tmp_path / "c.jsonl"), 1e6, lambda progress: None)
    assert trainer.progress.done and 0.2 <= trainer.progress.seconds < 5


def test_gradients_that_are_not_finite_stop_the_run(tmp_path):
    trainer = make_trainer()
    before = trainer.live["line"].weight.detach().clone()
    with pytest.raises(UserError, match="finite gradient"):
        trainer.train(Broken(), Curves(tmp_path / "c.jsonl"), 1, lambda progress: None)
    assert torch.equal(before, trainer.live["line"].weight)


def test_random_numbers_depend_on_seed_name_and_step():
    draws = {
        torch.rand(1, generator=step_generator(*key)).item()
        for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    }
    assert len(draws) == 4
