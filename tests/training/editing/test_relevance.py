"""Where two sentences differ about a picture, and what an edit makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datasets.labels import label_set
from dnnlib.errors import UserError
from tests.training.editing.conftest import FakePrior, Prediction
from training.editing.region import EditRequest, RegionSettings, dilate
from training.editing.relevance import concerned, relevance
from training.editing.settings import EditSettings
from training.editing.views import renewed, source_views
from training.generator import Want
from training.scene import Scene, class_map, scene_of

SETTINGS = EditSettings(views=((0.3, 0.0),), region=RegionSettings(voxels=16))
WORDS = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)


class LocalPrior(FakePrior):
    """A sentence is a number, which it adds to the noise of one latent pixel, the upper left one."""

    def predict_noise(self, latents, t, text, condition, *, guidance_scale, negative):
        def noise_of(words: Tensor) -> Tensor:
            noise = latents.clone()
            noise[..., 0, 0] += words[:, 0]
            return noise

        return Prediction(noise_of(text), noise_of(negative))


def test_relevance_is_where_the_predictions_differ() -> None:
    latents, random = torch.randn(1, 3, 5, 5), torch.Generator().manual_seed(0)
    found = relevance(LocalPrior(), latents, None, *WORDS, random)
    # as far as it is blurred: means over the 4, 6, 6 and 9 pixels beside each of them
    expected = torch.zeros(1, 1, 5, 5)
    expected[..., :2, :2] = torch.tensor([[1 / 4, 1 / 6], [1 / 6, 1 / 9]])
    torch.testing.assert_close(found, expected)
    everywhere = torch.ones(10, 10, dtype=torch.bool)
    assert concerned(found, 0.8, everywhere).sum() < concerned(found, 0.3, everywhere).sum() < 25


def test_what_is_concerned_lies_within_what_may_change() -> None:
    found = torch.zeros(1, 1, 4, 4)
    found[..., 0, 0], found[..., 3, 3] = 1.0, 0.1  # most of the difference is elsewhere
    within = torch.zeros(4, 4, dtype=torch.bool)
    within[2:, 2:] = True
    assert (concerned(found, 0.4, within) & within).nonzero().tolist() == [[3, 3]]


def test_sentences_that_do_not_differ_say_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    found = relevance(LocalPrior(), torch.randn(1, 3, 4, 4), None, WORDS[0], WORDS[0], random)
    assert not found.any() and concerned(found, 0.4, torch.ones(8, 8, dtype=torch.bool)).all()


@pytest.fixture
def source(generator, camera) -> Scene:
    return scene_of(generator, generator.map(torch.randn(1, 8), camera))


@pytest.fixture
def request_(source, camera) -> EditRequest:
    """The mask as it is; all of its most frequent class may change."""
    rendered = class_map(source.render(camera, Want(), deterministic=True))[0]
    return EditRequest(rendered, rendered, camera, (int(rendered.flatten().mode().values),))


def test_an_edit_that_repaints_nothing_changes_what_the_sentence_is_about(source, request_) -> None:
    labels = label_set(source.generator.config.labels)
    whole = source_views(source, LocalPrior(), request_, replace(SETTINGS, relevance=0.0), WORDS)
    narrow = source_views(source, LocalPrior(), request_, SETTINGS, WORDS)
    for all_of_it, some in zip(whole, narrow, strict=True):
        assert all_of_it.concerned is None
        assert torch.equal(some.footprint, all_of_it.footprint & some.concerned)
        assert some.concerned[0, 0, 0] and not some.concerned[0, 12:, 12:].any()
        assert some.footprint.sum() < all_of_it.footprint.sum()
        now = renewed(some, some.source_classes, LocalPrior(), labels, request_, SETTINGS)
        assert torch.equal(now.footprint, some.footprint)


def test_what_is_repainted_says_itself_where(source, request_) -> None:
    requested = request_.requested.clone()
    requested[2:8, 2:8] = (request_.classes[0] + 1) % source.generator.parts
    request = replace(request_, requested=requested)
    views = source_views(source, LocalPrior(), request, SETTINGS, WORDS)
    assert all(view.concerned is None for view in views)
    assert torch.equal(views[0].footprint[0], dilate(request.footprint, 1))


def test_a_share_is_at_most_one() -> None:
    with pytest.raises(UserError, match="relevance is 2"):
        EditSettings(relevance=2.0)
