"""Captions say what the attributes say."""

import numpy as np
import pytest

from datasets.portraits.captions import VOCABULARY, brief_caption, caption, words
from datasets.portraits.sampling import sample

MANY = [sample(3, i) for i in range(400)]


def test_captions_use_the_closed_vocabulary():
    used = {word for a in MANY for word in words(a.caption)}
    assert used <= set(VOCABULARY)


@pytest.mark.parametrize("tell", [caption, brief_caption])
@pytest.mark.parametrize("a", MANY[:100], ids=lambda a: str(a.index))
def test_captions_are_true(a, tell):
    for trial in range(20):
        said = set(words(tell(a, np.random.default_rng(trial))))
        assert said <= set(VOCABULARY)
        assert "woman" not in said or a.sex == "female"
        assert "man" not in said or a.sex == "male"
        assert not said & {"glasses", "sunglasses"} or a.glasses != "none"
        assert "sunglasses" not in said or a.glasses == "sunglasses"
        assert not said & {"hat", "cap", "beanie"} or a.hat != "none"
        assert "beard" not in said or a.beard == "beard"
        assert "mustache" not in said or a.beard == "mustache"
        assert "bald" not in said or (a.hair_style == "bald" and a.hat == "none")
        assert "hair" not in said or (a.hair_style != "bald" and a.hair_colour in said)
        assert "curly" not in said or a.hair_style == "curly"
        for word in ("young", "old"):
            assert word not in said or a.age_word == word
        for word in ("smiling", "laughing", "frowning", "surprised"):
            assert word not in said or a.expression == word


def test_brief_captions_tell_each_thing_about_as_often():
    a = next(a for a in MANY if a.hat != "none" and a.beard == "none" and a.glasses == "none")
    told = [brief_caption(a, np.random.default_rng(trial)) for trial in range(300)]
    hats = sum(f"wearing a {a.hat_colour} {kind}" in text for text in told for kind in {"hat", a.hat})
    assert 0.2 * len(told) < hats < 0.6 * len(told), told[:5]
