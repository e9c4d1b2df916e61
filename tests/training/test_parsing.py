"""The parser among the judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dnnlib.errors import UserError
from training import snapshots
from training.curves import Curves
from training.loop import Trainer
from training.networks.inputs import one_hot, resize
from training.parsing import Parsing
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.views import Views

CPU = torch.device("cpu")


@pytest.fixture
def parsing(tiny) -> Parsing:
    config = tiny(
        "loss.mask_parsing=2",
        "loss.mask_parsed=3",
        "parser.widths=[8,16]",
        "parser.lr=0.01",
        "parser.warm_up_kimg=0.2",
    )
    torch.manual_seed(1)
    return Parsing(Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU))


def half_and_half(count: int, parts: int) -> Views:
    """Red above, blue below, by a border of each picture's own; class 1 is red, class 2 is blue."""
    above = torch.arange(16)[:, None] < torch.randint(4, 12, (count, 1, 1))
    classes = torch.where(above, 1, 2).expand(count, 16, 16)
    image = torch.stack([above, ~above & False, ~above], 1).expand(count, 3, 16, 16) * 2.0 - 1
    mask = one_hot(classes, parts) * 2 - 1
    return Views(image.contiguous(), resize(image, 8), mask, resize(mask, 8))


def test_it_learns_masks_and_asks_pictures_for_them(parsing):
    parts = 6
    for _ in range(60):
        parsing.learn(half_and_half(4, parts))
        parsing.grow(4)
    assert parsing.seen == 240
    views = half_and_half(4, parts)
    right = parsing.terms(views)
    assert [term.weight for term in right] == [2, 3]  # 240 of 200 pictures: fully grown
    assert right[0].value < 0.5
    image, mask = views.image.flip(2).requires_grad_(), views.mask.clone().requires_grad_()
    turned = Views(image, views.image_raw, mask, views.mask_raw)
    wrong = parsing.terms(turned)
    assert all(bad.value > 3 * good.value for bad, good in zip(wrong, right, strict=True))
    # of the first, pictures come to look like their masks; of the second, masks to say what pictures show
    for term, follows, leads in ((wrong[0], "image", "mask"), (wrong[1], "mask", "image")):
        tensors = {"image": image, "mask": mask}
        found = torch.autograd.grad(term.value, tensors[follows], retain_graph=True)[0]
        moved = {follows: tensors[follows] - 3 * functional.normalize(found.flatten(1)).view_as(found)}
        after = parsing.terms(replace(turned, **moved))[wrong.index(term)]
        assert after.value < term.value
        assert (
            torch.autograd.grad(term.value, tensors[leads], allow_unused=True, retain_graph=True)[0] is None
        )


def test_its_weight_grows_while_it_learns(parsing):
    views = half_and_half(4, 6)
    assert [term.weight for term in parsing.terms(views)] == [0, 0]
    parsing.learn(views)
    parsing.grow(50)
    assert [float(term.weight) for term in parsing.terms(views)] == pytest.approx(
        [2 * 50 / 200, 3 * 50 / 200]
    )


def test_a_run_goes_on_with_its_parser_and_an_older_run_gets_a_new_one(tiny, tmp_path: Path):
    options = ("loss.mask_parsing=1", "parser.widths=[8,16]")

    def run(outdir: Path, *overrides: str, resume: Path | None = None) -> dict[str, torch.Tensor]:
        assert Trainer(tiny(*overrides), outdir, CPU, resume).run()
        return snapshots.checkpoint.load(snapshots.find_states(outdir)[-1])[0]

    whole = run(tmp_path / "whole", "kimg=0.016", *options)
    run(tmp_path / "parts", "kimg=0.008", *options)
    parts = run(tmp_path / "parts", "kimg=0.016", *options, resume=tmp_path / "parts")
    assert whole.keys() == parts.keys() and any("parser" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    run(tmp_path / "old", "kimg=0.008")
    old = run(tmp_path / "old", "kimg=0.016", *options, resume=tmp_path / "old")
    assert old.keys() == whole.keys()


@pytest.mark.parametrize(
    ("option", "message"), [("loss.mask_parsed=1", "mask_parsing"), ("parser.widths=[8,12]", "must divide")]
)
def test_settings_that_do_not_go_together_are_said(tiny, option: str, message: str):
    with pytest.raises(UserError, match=message):
        tiny(option)
