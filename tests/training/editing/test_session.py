"""What an edit decides before it begins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from training.editing.session import with_clip_weight
from training.editing.settings import EditSettings, EditWeights


@pytest.mark.parametrize(("words", "weight"), [(("a", "hat"), 1.0), (None, 0.0)])
def test_clip_helps_the_small_prior_only(words, weight) -> None:
    prior = SimpleNamespace(vocabulary=SimpleNamespace(words=words))
    assert with_clip_weight(EditSettings(), prior).weights.clip == weight
    for given in (0.0, 0.3):
        settings = replace(EditSettings(), weights=EditWeights(clip=given))
        assert with_clip_weight(settings, prior) == settings
