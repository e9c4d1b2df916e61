"""What the benchmark times: that it is the work it says, and runs."""

from __future__ import annotations

import pytest
import torch

from dnnlib import config as config_files
from tests.tiny_prior import write_tiny_models
from tests.tiny_run import TINY_RUN
from training.acceleration import Acceleration
from training.benchmark import work
from training.config import TrainConfig
from training.editing.optimise import EditOptimiser
from training.editing.settings import EditSettings


def test_a_recipe_that_keeps_reconstructions_and_parses_masks_can_be_measured():
    options = ["warm_start.keep=1", "loss.mask_parsing=1", "parser.widths=[8,16]"]
    steps = list(work.training_steps(config_files.load(TrainConfig, TINY_RUN, options), "cpu", batch=2))
    assert [each.name.split(",")[0] for each in steps][-1] == "parser step"
    for each in steps:
        each.run()


@pytest.fixture
def tiny_models(tmp_path):
    """Paths of a random generator and a random prior, of pictures of 16 x 16."""
    write_tiny_models(tmp_path, ("a", "hat", "map", "normal", "of", "person", "with"))
    return tmp_path / "network.safetensors", str(tmp_path / "prior")


def test_steps_of_an_edit(tiny_models, monkeypatch):
    """Two steps, which learn, of an edit that makes the largest class another one."""
    steps, take = [], EditOptimiser.step

    def watched(optimiser, number):
        before = [each.clone() for each in optimiser.portrait.learned.parameters()]
        losses = take(optimiser, number)
        after = optimiser.portrait.learned.parameters()
        learned = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        steps.append((number, learned, optimiser.request))
        return losses

    monkeypatch.setattr(EditOptimiser, "step", watched)
    settings = config_files.load(
        EditSettings, {}, ["region.voxels=16", "keep_points=64", "views=[[0.3, 0.0]]"]
    )
    (each,) = work.edit_steps(*tiny_models, None, settings, "cpu", Acceleration())
    assert each.items == 2 and each.counted is None
    each.run()
    assert [(number, learned) for number, learned, _ in steps] == [(0, True), (1, True)]
    request = steps[0][2]
    largest, other = request.classes
    assert largest != 0 and torch.equal(request.changed, request.rendered == largest)
    assert request.changed.any() and (request.requested[request.changed] == other).all()
