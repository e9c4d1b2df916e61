"""The parser among the judges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from training import snapshots
from training.curves import Curves
from training.loop import Trainer
from training.parsing import Parsing
from training.phases import Context, build_models
from training.updates import FiniteGuard
from training.views import Views, one_hot, reduce

CPU = torch.device("cpu")


@pytest.fixture
def parsing(tiny) -> Parsing:
    config = tiny("loss.mask_parsing=2", "parser.widths=[8,16]", "parser.lr=0.01", "parser.warm_up_kimg=0.2")
    torch.manual_seed(1)
    return Parsing(Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU))


def half_and_half(count: int, parts: int) -> Views:
    """Red above, blue below, by a border of each picture's own; class 1 is red, class 2 is blue."""
    above = torch.arange(16)[:, None] < torch.randint(4, 12, (count, 1, 1))
    classes = torch.where(above, 1, 2).expand(count, 16, 16)
    image = torch.stack([above, ~above & False, ~above], 1).expand(count, 3, 16, 16) * 2.0 - 1
    mask = one_hot(classes, parts) * 2 - 1
    return Views(image.contiguous(), reduce(image, 8), mask, reduce(mask, 8))


def test_it_learns_masks_and_asks_pictures_for_them(parsing):
    parts = 6
    for _ in range(60):
        parsing.learn(half_and_half(4, parts), 4)
    assert parsing.seen == 240
    views = half_and_half(4, parts)
    term = parsing.term(views)
    assert term.weight == 2  # 240 of 200 pictures: fully grown
    assert term.value < 0.5
    turned = Views(views.image.flip(2), views.image_raw, views.mask, views.mask_raw)
    assert parsing.term(turned).value > 3 * term.value
    # a picture that follows the gradient comes to look like its mask; masks are only read
    image, mask = turned.image.clone().requires_grad_(), turned.mask.clone().requires_grad_()
    value = parsing.term(Views(image, turned.image_raw, mask, turned.mask_raw)).value
    found, nothing = torch.autograd.grad(value, (image, mask), allow_unused=True)
    assert nothing is None
    changed = image.detach() - 0.2 * functional.normalize(found.flatten(1)).view_as(image) * 16
    assert parsing.term(Views(changed, turned.image_raw, mask, turned.mask_raw)).value < value


def test_its_weight_grows_while_it_learns(parsing):
    views = half_and_half(4, 6)
    assert parsing.term(views).weight == 0
    parsing.learn(views, 50)
    assert parsing.term(views).weight == pytest.approx(2 * 50 / 200)


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
