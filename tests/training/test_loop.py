"""The loop: phases in order, resuming to the bit, stopping in good order, and bad gradients."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from dnnlib import config as config_files
from dnnlib.errors import UserError
from tests.training.conftest import write_set
from tests.training.two_processes import run_in_group
from training import loop, phases, snapshots
from training.adversarial import AdversarialPhase
from training.curves import read_curves
from training.generator import Generator
from training.loop import Trainer
from training.stopping import StopSignals

CPU = torch.device("cpu")


def run(config, outdir: Path, resume: Path | None = None) -> Trainer:
    trainer = Trainer(config, outdir, CPU, resume)
    assert trainer.run()
    return trainer


def everything(outdir: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest state: weights, average, optimisers, strength, random states."""
    tensors, _ = snapshots.checkpoint.load(snapshots.find_states(outdir)[-1])
    return tensors


def assert_same_state(one: Path, two: Path) -> None:
    first, second = everything(one), everything(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_run_leaves_what_it_promises(tiny, tmp_path: Path):
    trainer = run(tiny("warm_start.kimg=0.008", "warm_start.batch=4"), tmp_path)
    assert trainer.progress.total == 8 + 16
    assert trainer.progress.position == 24
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "stats.jsonl", "grid-000000.png", "network-snapshot-000000.safetensors"} <= names
    lines = read_curves(tmp_path / "stats.jsonl")
    assert [line["phase"] for line in lines] == ["sphere"] * 2 + ["warm_start"] * 2 + ["adversarial"] * 4
    assert {"generator/image", "discriminator/mask_r1", "shape/eikonal"} <= lines[4].keys()
    generator = Generator.load(tmp_path / "network-snapshot-000000.safetensors")
    average = trainer.context.models.average.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in generator.state_dict().items())


def test_resumed_adversarial_run_equals_one_that_never_stopped(tiny, tmp_path: Path):
    adaptive = ("augment.mode=ada", "augment.interval=1", "augment.speed_kimg=0.05")
    run(tiny("kimg=0.016", *adaptive), tmp_path / "whole")
    run(tiny("kimg=0.008", *adaptive), tmp_path / "parts")
    run(tiny("kimg=0.016", *adaptive), tmp_path / "parts", resume=tmp_path / "parts")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_fresh_judges_keep_what_makes_pictures(tiny, tmp_path: Path):
    options = ("warm_start.kimg=0.008", "warm_start.batch=4", "warm_start.keep=0.5", "loss.mask_parsing=1")
    options += ("parser.widths=[8,16]",)
    old = run(tiny(*options), tmp_path / "old")
    new = Trainer(tiny(*options), tmp_path / "new", CPU, tmp_path / "old", fresh_judges=True)
    assert (new.phase.name, new.progress.images, new.progress.total) == ("adversarial", 0, 8 + 16)
    averaged = old.context.models.average.state_dict()
    for name in ("average", "generator"):
        state = getattr(new.context.models, name).state_dict()
        assert all(torch.equal(value, averaged[key]) for key, value in state.items()), name
    encoders = (each.context.models.encoder.state_dict() for each in (old, new))
    assert all(torch.equal(one, two) for one, two in zip(*(e.values() for e in encoders), strict=True))
    moments = (each.phase.reconstruction.moments.second for each in (old, new))
    assert torch.equal(*moments)
    for name in ("discriminator", "discriminator_mask", "parser"):
        before, after = (getattr(each.context.models, name).state_dict() for each in (old, new))
        assert any(not torch.equal(value, after[key]) for key, value in before.items()), name
    assert new.phase.parsing.seen == 0 and not new.phase.generator_updater.optimiser.state
    assert new.run() and new.progress.total == 8 + 16 + 16


def test_fresh_judges_are_for_states(tiny, tmp_path: Path):
    old = run(tiny(), tmp_path)
    with pytest.raises(UserError, match="a generator alone"):
        Trainer(tiny(), tmp_path / "new", CPU, tmp_path / "network-snapshot-000000.safetensors", True)
    assert old.finished


def test_run_resumed_inside_and_across_phases_equals_one_that_never_stopped(tiny, tmp_path: Path):
    config = tiny("warm_start.kimg=0.012", "warm_start.batch=4", "warm_start.keep=0.5", "kimg=0.008")
    run(config, tmp_path / "whole")

    def stop_after(images: int, phase: str, resume: Path | None) -> None:
        trainer = Trainer(config, tmp_path / "parts", CPU, resume)
        step = trainer.phase.step

        def step_and_ask_to_stop(batch, seen: int) -> None:
            step(batch, seen)
            if seen + trainer.phase.batch == images:
                os.kill(os.getpid(), signal.SIGTERM)

        assert trainer.phase.name == phase
        trainer.phase.step = step_and_ask_to_stop
        assert not trainer.run()

    stop_after(2, "sphere", None)
    trainer = Trainer(config, tmp_path / "parts", CPU, tmp_path / "parts")
    assert trainer.phase.name == "sphere"
    step = trainer.phase.step

    def last_sphere_step(batch, seen: int) -> None:
        step(batch, seen)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.phase.step = last_sphere_step
    assert not trainer.run()
    stop_after(8, "warm_start", tmp_path / "parts")
    run(config, tmp_path / "parts", resume=tmp_path / "parts")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_run_resumed_from_the_last_step_of_a_phase_equals_one_that_never_stopped(tiny, tmp_path: Path):
    config = tiny("warm_start.kimg=0.012", "warm_start.batch=4", "kimg=0.008", "snapshot_kimg=0.012")
    run(config, tmp_path / "whole")
    state = min(snapshots.find_states(tmp_path / "whole"))  # written before the warm start was finished
    assert Trainer(config, tmp_path, CPU, state).progress.total == 12
    run(config, tmp_path / "parts", resume=state)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_processes_agree_and_resume_together(tiny, tmp_path: Path):
    """Two of them; shares of a batch, the average of w and the encoder's moments are what could differ."""
    options = (
        "warm_start.kimg=0.008",
        "warm_start.batch=4",
        "warm_start.keep=0.5",
        "warm_start.aggregate=0.1",
    )
    adaptive = ("augment.mode=ada", "augment.interval=1", "augment.speed_kimg=0.05")
    config_files.save(tiny(*options, *adaptive), tmp_path / "config.yaml")
    run_in_group(Path(__file__).with_name("run_of_a_group.py"), 2, tmp_path)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_going_back_sets_aside_what_came_after(tiny, tmp_path: Path):
    config = tiny("kimg=0.016", "snapshot_kimg=0.008")
    run(config, tmp_path)
    older, newer = snapshots.find_states(tmp_path)
    state = older.read_bytes()
    again = Trainer(tiny("kimg=0.012", "snapshot_kimg=0.008"), tmp_path, CPU, older)
    assert again.run()
    assert [path.name for path in snapshots.find_states(tmp_path)] == [
        older.name,
        "training-state-000000000012.safetensors",
    ]
    assert older.read_bytes() == state
    assert sorted(path.name for path in (tmp_path / "set-aside-1").iterdir()) == [
        newer.with_suffix(".json").name,
        newer.name,
    ]
    assert Trainer(config, tmp_path, CPU, tmp_path).progress.total == 12


def test_scores_leave_the_run_s_random_numbers_alone(tiny, tmp_path: Path, monkeypatch):
    class Scores:
        def __init__(self, config, device) -> None:
            torch.randn(3)  # as networks draw their first weights

        def __call__(self, generator) -> dict[str, float]:
            raise AssertionError("not this early")

    monkeypatch.setattr("training.metrics.evaluation.TrainingScores", Scores)
    run(tiny("kimg=0.008"), tmp_path / "plain")
    scored = tiny("kimg=0.008", "metrics_kimg=1000")
    run(tiny("kimg=0.004", "metrics_kimg=1000"), tmp_path / "scored")
    run(scored, tmp_path / "scored", resume=tmp_path / "scored")
    assert_same_state(tmp_path / "plain", tmp_path / "scored")


@pytest.mark.parametrize("first", [(), ("warm_start.kimg=0.004", "warm_start.batch=4")])
def test_reconstructions_can_be_added_to_a_run(tiny, tmp_path: Path, first):
    run(tiny("kimg=0.004", *first), tmp_path)
    kept = tiny("kimg=0.008", *first, "warm_start.keep=0.5")
    trainer = run(kept, tmp_path, resume=tmp_path)
    assert trainer.phase.reconstruction is not None
    assert trainer.phase.reconstruction.moments.weight > 0


@pytest.mark.parametrize("override", ["batch_per_pass=1", "warm_start.keep=0.3"])
def test_share_of_reconstructions_must_be_whole(tiny, tmp_path: Path, override):
    with pytest.raises(UserError, match="whole number"):
        run(tiny("warm_start.keep=0.5", override, "sphere.steps=0"), tmp_path)


def test_time_limit_ends_the_run_in_good_order(tiny, tmp_path: Path):
    trainer = Trainer(tiny(), tmp_path, CPU)
    assert not trainer.run(minutes=0)
    assert len(snapshots.find_states(tmp_path)) == 1


def test_the_first_signal_says_what_a_second_would_do(capsys):
    # a shell's background job begins with Ctrl-C ignored
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals(None, CPU) as stop:
            assert not stop.asked()
            signal.raise_signal(signal.SIGINT)
            assert stop.asked()
            assert "again ends it at once" in capsys.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_picture_that_goes_bad_costs_nothing_learned(tiny, tmp_path: Path):
    trainer = Trainer(tiny("data.workers=0", "snapshot_kimg=1", "log_kimg=1"), tmp_path, CPU)
    read = trainer.data.__class__.__getitem__
    images = 0

    def spoilt(data, index):
        nonlocal images
        images += 1
        if images > 9:  # two batches of four, and what is read for the third
            raise UserError("img00000007.png is damaged or cut short")
        return read(data, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.data.__class__, "__getitem__", spoilt)
        with pytest.raises(UserError, match=f"img00000007.png .*go on with --resume {tmp_path}"):
            trainer.run()
    assert trainer.progress.total == 8
    again = Trainer(tiny("data.workers=0"), tmp_path, CPU, tmp_path)
    assert again.progress.total == 8 and again.run()


def test_non_finite_gradients_are_counted_and_end_the_run(tiny, tmp_path: Path):
    trainer = Trainer(tiny("max_nonfinite=2", "sphere.steps=50"), tmp_path, CPU)
    with torch.no_grad():
        trainer.context.models.generator.decoder.shape.bias2.fill_(float("nan"))
    with pytest.raises(UserError, match="max_nonfinite=2"):
        trainer.run()
    assert trainer.context.guard.count == 3
    # the bad steps were left out
    assert trainer.context.models.generator.synthesis.b4.const.isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "phase"), [((), "adversarial"), (("warm_start.kimg=1", "warm_start.batch=4"), "warm_start")]
)
def test_training_starts_from_a_generator_file(tiny, tmp_path: Path, overrides, phase):
    run(tiny(), tmp_path / "first")
    file = tmp_path / "first" / "network-snapshot-000000.safetensors"
    trainer = Trainer(tiny(*overrides), tmp_path / "second", CPU, file)
    assert trainer.phase.name == phase
    assert trainer.progress.total == 0
    saved = Generator.load(file).state_dict()
    weights = trainer.context.models.generator.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in weights.items())


def test_state_of_other_sizes_is_refused(tiny, tmp_path: Path):
    run(tiny(), tmp_path)
    with pytest.raises(UserError, match="does not fit the sizes of this configuration"):
        Trainer(tiny("generator.decoder_width=12"), tmp_path, CPU, tmp_path)


def test_workers_see_the_same_pictures(tiny, tmp_path: Path):
    batches = []
    for workers in (0, 1):
        trainer = Trainer(tiny(f"data.workers={workers}"), tmp_path, CPU)
        trainer.progress.phase, trainer.progress.position = loop.PHASES.index("adversarial"), 5
        trainer._enter_phase()
        stream = trainer._batches()
        batches.append([next(stream).index.tolist() for _ in range(4)])
    assert batches[0] == batches[1]


def test_training_begins_with_the_encoder_of_another_run(tiny, tmp_path: Path):
    warm = ("warm_start.kimg=0.008", "warm_start.batch=4", "warm_start.encoder_resolution=8")
    first = run(tiny(*warm), tmp_path / "first")
    file = tmp_path / "first" / "encoder.safetensors"
    second = Trainer(tiny(*warm, "seed=1", f"warm_start.encoder={file}"), tmp_path / "second", CPU)
    learned, taken = (each.context.models.encoder.state_dict() for each in (first, second))
    assert learned.keys() == taken.keys()
    assert all(torch.equal(value, taken[name]) for name, value in learned.items())
    # what a state holds has learned more than what its run began with
    again = Trainer(tiny(*warm, f"warm_start.encoder={tmp_path / 'gone'}"), tmp_path, CPU, tmp_path / "first")
    assert all(
        torch.equal(value, learned[name]) for name, value in again.context.models.encoder.state_dict().items()
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("warm_start.kimg=1",), "has resolution 8 instead of 16"),
        (("warm_start.kimg=1", "warm_start.encoder_resolution=8", "generator.z_dim=6"), "z_dim"),
        ((), "neither warm_start.kimg nor keep"),
    ],
)
def test_encoder_that_does_not_fit_is_refused(tiny, tmp_path: Path, overrides, message):
    file = tmp_path / "encoder.safetensors"
    config = tiny("warm_start.kimg=1", "warm_start.encoder_resolution=8")
    phases.build_models(config, CPU).encoder.save(file)
    with pytest.raises(UserError, match=message):
        Trainer(tiny(*overrides, f"warm_start.encoder={file}"), tmp_path / "run", CPU)


def test_pictures_without_depth_are_refused_before_the_first_step(tiny, tmp_path: Path):
    bare = write_set(tmp_path / "set", 16, 3)
    shutil.rmtree(bare / "depth")
    config = tiny("warm_start.kimg=1", "warm_start.batch=4", f"data.images={bare}")
    with pytest.raises(UserError, match="warm_start.kimg=0"):
        Trainer(config, tmp_path / "run", CPU)
    assert Trainer(tiny(f"data.images={bare}"), tmp_path / "run", CPU).phase.name == "sphere"


def test_signals_to_the_whole_group_end_the_run_in_good_order(tiny, tmp_path: Path, monkeypatch):
    """As `timeout` and batch systems send them: the workers that read pictures must not die of it."""
    trainer = Trainer(tiny("data.workers=1", "kimg=10", "sphere.steps=0"), tmp_path, CPU)
    step = trainer.phase.step

    def step_and_signal(batch, images: int) -> None:
        step(batch, images)
        if images == 0:
            children = multiprocessing.active_children()
            assert children
            for child in children:
                os.kill(child.pid, signal.SIGTERM)
                child.join(1)
                assert child.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.phase.step = step_and_signal
    assert not trainer.run()
    assert snapshots.find_states(tmp_path)


def test_end_of_a_warm_start_is_saved_before_what_follows(tiny, tmp_path: Path, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(AdversarialPhase, "step", broken)
    config = tiny("warm_start.kimg=0.008", "warm_start.batch=4", "warm_start.keep=0.5", "kimg=0.004")
    with pytest.raises(ZeroDivisionError):
        run(config, tmp_path)
    monkeypatch.undo()
    again = Trainer(config, tmp_path, CPU, tmp_path)
    assert (again.phase.name, again.progress.total) == ("adversarial", 8)
    assert again.run()
