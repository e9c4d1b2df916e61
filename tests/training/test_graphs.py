"""Recorded steps: nothing in them waits for the device, and on CUDA they do what unrecorded ones do."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from datasets.masked_images import Batch
from tests.training.recordable import Watch, refuse_tensors_of_the_host
from training.adversarial import AdversarialPhase
from training.curves import Curves
from training.graphs import Recorder
from training.loop import Trainer
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.warmstart import WarmStartPhase

META = torch.device("meta")


def batch(count: int, side: int) -> Batch:
    return Batch(
        image=torch.zeros(count, 3, side, side, dtype=torch.uint8, device=META),
        mask=torch.zeros(count, side, side, dtype=torch.uint8, device=META),
        camera=torch.zeros(count, 25, device=META),
        index=torch.zeros(count, dtype=torch.int64, device=META),
        normals=torch.zeros(count, 3, side, side, device=META),
        depth=torch.zeros(count, 1, side, side, device=META),
    )


@pytest.mark.parametrize("phase", [WarmStartPhase, AdversarialPhase])
def test_steps_read_nothing_back(tiny, monkeypatch, phase):
    """The device is torch's 'meta', which has no values: reading one, or mixing devices, fails or is seen."""
    config = tiny(
        *("augment.mode=ada", "loss.part_colour=0.1", "loss.minimal_surface=0.1", "loss.mask_parsing=1"),
        *("loss.mask_parsed=1", "warm_start.kimg=1", "warm_start.keep=0.5", "warm_start.keep_features=1"),
        *("warm_start.aggregate=0.1", "warm_start.hue=1", "warm_start.perceptual=1", "schedule.beta=0.01"),
        *("parser.widths=[8,16]", "schedule.generator_delay_kimg=0", "mixed_precision=false"),
        *(
            "warm_start.encoder_kimg=0.004",
            "warm_start.dreams=1",
            "schedule.grow_kimg=0.004",
        ),  # one step each
    )
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)  # the fused one has no meta kernel
    context = Context(config, build_models(config, META), Curves(), FiniteGuard(0), META)
    steps = phase(context)
    refuse_tensors_of_the_host(monkeypatch)
    with Watch() as watch:
        for images in (0, 4):
            steps.step(batch(4, config.generator.resolution), images)
    assert watch.found == []


def test_the_watch_sees_what_it_is_for():
    x = torch.zeros(3, device=META)
    with Watch() as watch:
        x[torch.zeros(2, dtype=torch.int64, device=META)]
        x + torch.tensor(2.0).to(META)
    assert watch.found == ["_to_copy from cpu to meta"]
    with Watch() as watch, pytest.raises((RuntimeError, NotImplementedError)):
        x[torch.zeros(3, dtype=torch.bool, device=META)]
    assert watch.found[0] == "index"
    with Watch() as watch, pytest.raises((RuntimeError, NotImplementedError)):
        bool(x.sum() > 0)
    assert watch.found


def test_without_cuda_functions_simply_run():
    recorder = Recorder("cpu", enabled=True)
    with recorder.stream():
        assert recorder.run("double", lambda x, y: 2 * x + y, 3, 1) == 7
    assert not recorder.enabled


def test_work_that_was_interrupted_is_waited_for(monkeypatch):
    """What it has begun may still write weights; CUDA is a stand-in here."""
    recorder, outside = Recorder(), Mock()
    recorder.enabled, recorder._stream = True, Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: outside)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    with pytest.raises(KeyboardInterrupt), recorder.stream():
        raise KeyboardInterrupt
    outside.wait_stream.assert_called_once_with(recorder._stream)


@dataclass(frozen=True)
class Pair:
    one: Tensor
    other: Tensor | None
    factor: float = 1.0


@pytest.mark.cuda
def test_recordings_follow_their_inputs_and_change_state_in_place():
    recorder = Recorder("cuda", enabled=True)
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimiser = torch.optim.Adam([weight], lr=0.1, fused=True, capturable=True)
    curves, runs = Curves(), []

    def learn(pair: Pair, several: list[Tensor]) -> Pair:
        runs.append(1)
        loss = (weight * pair.one * pair.factor).sum() + several[0].sum()
        loss.backward()
        curves.add("loss", loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return Pair(pair.one * 2, torch.rand(3, device="cuda"))

    seen, weights = [], []
    with recorder.stream():
        for i in range(8):
            x = torch.full((3,), float(i + 1), device="cuda")
            result = recorder.run("learn", learn, Pair(x, None), [x])
            assert result.one.tolist() == [2.0 * (i + 1)] * 3
            seen.append(result.other.tolist())
            weights.append(weight.detach().clone())
        assert len(runs) == 3  # twice as they are, once to be recorded
        recorder.run("learn", learn, Pair(x, None, factor=2.0), [x])
        assert len(runs) == 4  # another setting: from the beginning
    assert len({tuple(each) for each in seen}) == 8  # new random numbers every time
    for before, after in zip(weights[:-1], weights[1:], strict=True):
        # the gradient is positive: Adam's step is about lr, though moments of growing gradients lag behind
        assert ((before - after) > 0.03).all()
    # sum of weight * x + x over three entries, weight being what it was before the step
    before = [torch.ones(3, device="cuda"), *weights]
    factors = [1.0] * 8 + [2.0]
    inputs = [*range(1, 9), 8]
    expected = [(w * x * f).sum() + 3 * x for w, x, f in zip(before, inputs, factors, strict=True)]
    assert curves.collect()["loss"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert curves.collect() == {}


@pytest.mark.cuda
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_recorded_run_is_like_one_that_is_not(tiny, tmp_path: Path, mixed_precision: bool):
    """Both phases with everything that the bundled recipe uses. The random numbers of both runs are the same,
    their sums of atomics are not: steps of Adam magnify that, so only the first losses can be compared."""
    lines = {}
    for graphs in (False, True):
        config = tiny(
            *("loss.mask_parsing=1", "loss.mask_parsed=1", "warm_start.kimg=0.032", "warm_start.batch=4"),
            *("warm_start.keep=0.5", "warm_start.aggregate=0.1", "schedule.beta=0.01", "kimg=0.064"),
            *("parser.widths=[8,16]", "schedule.generator_delay_kimg=0", "schedule.blur_kimg=0"),
            *(f"cuda_graphs={graphs}", f"mixed_precision={mixed_precision}"),
        )
        trainer = Trainer(config, tmp_path / str(graphs), torch.device("cuda", 0))
        assert trainer.run()
        assert trainer.context.guard.count == 0
        graphed = trainer.context.recorder._records
        names = ("warm_start", "generator", "density", "discriminators", "r1")
        assert not graphs or all(graphed[name].graph is not None for name in names)
        text = (tmp_path / str(graphs) / "stats.jsonl").read_text().splitlines()
        lines[graphs] = [json.loads(line) for line in text]
        for module in trainer.context.models.named().values():
            assert all(p.isfinite().all() for p in module.parameters())
    pairs = list(zip(lines[False], lines[True], strict=True))
    for eager, recorded in pairs:
        assert eager.keys() == recorded.keys()
    for eager, recorded in pairs[:6]:
        for name in ("fit/image", "sphere/global"):
            if name in eager:
                assert recorded[name] == pytest.approx(eager[name], rel=2e-2)
