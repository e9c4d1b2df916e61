"""Attributes are decided by (seed, index) alone, and captions say what the attributes say."""

import numpy as np
import pytest

from datasets.portraits.attributes import VOCABULARY, caption, sample, words

MANY = [sample(3, i) for i in range(400)]


def test_the_same_index_gives_the_same_portrait():
    assert sample(3, 17).to_json() == MANY[17].to_json()


def test_seeds_and_indices_differ():
    assert sample(4, 17).to_json() != MANY[17].to_json()
    assert MANY[16].morphs != MANY[17].morphs


def test_captions_use_the_closed_vocabulary():
    used = {word for a in MANY for word in words(a.caption)}
    assert used <= set(VOCABULARY)


@pytest.mark.parametrize("a", MANY[:100], ids=lambda a: str(a.index))
def test_captions_are_true(a):
    for trial in range(20):
        said = set(words(caption(a, np.random.default_rng(trial))))
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


def test_shares_and_poses_are_as_designed():
    def share(test):
        return np.mean([test(a) for a in MANY])

    # 400 draws of a 15 % event have a standard deviation of 1.8 %
    assert 0.08 < share(lambda a: a.hat != "none") < 0.23
    assert 0.08 < share(lambda a: a.glasses != "none") < 0.25
    assert 0.02 < share(lambda a: a.beard == "beard") < 0.2
    assert max(abs(a.yaw) for a in MANY) <= 0.8
    assert share(lambda a: abs(a.yaw) < 0.35) > 0.5
