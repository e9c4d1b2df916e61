"""Records and sentences to attributes."""

from __future__ import annotations

import pytest
import torch

from datasets.labels import label_set
from datasets.portraits import BUNDLED
from training.judges.attributes import ATTRIBUTES, HIDDEN, claims, satisfied, targets
from training.metrics.portrait_set import read_set

LABELS = label_set("ffhq-mask")


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a person wearing a red hat", {"hat": {"beanie", "cap", "hat"}, "hat colour": {"red"}}),
        ("a young woman wearing a blue beanie", {"sex": {"female"}, "age": {"young"}, "hat": {"beanie"}}),
        ("a middle-aged man", {"sex": {"male"}, "age": {"middle-aged"}}),
        ("a person with long red hair", {"hair colour": {"red"}, "hair style": {"long", "curly"}}),
        ("a person with a black afro", {"hair colour": {"black"}, "hair style": {"afro"}}),
        ("short curly brown hair", {"hair colour": {"brown"}, "hair style": {"curly", "afro"}}),
        ("brown hair in a ponytail", {"hair colour": {"brown"}, "hair style": {"ponytail"}}),
        ("a bald man with a beard, smiling", {"hair style": {"bald"}, "beard": {"beard"}, "sex": {"male"}}),
        ("a person wearing round glasses", {"glasses": {"glasses"}}),
        ("a person wearing an orange shirt", {"cloth colour": {"orange"}}),
        ("a person with green eyes", {}),
        ("a portrait of a person", {}),
    ],
)
def test_claims(prompt: str, wanted: dict) -> None:
    found = claims(prompt)
    assert {name: set(found[name]) for name in wanted} == wanted
    assert wanted or not found


def test_a_colour_goes_with_the_word_after_it() -> None:
    found = claims("a woman with blond hair wearing a red hat and a green shirt")
    assert found["hair colour"] == {"blond"}
    assert found["hat colour"] == {"red"} and found["cloth colour"] == {"green"}


def test_claims_hold_for_the_records_that_captions_were_made_of() -> None:
    """Every caption of the bundled set claims only what the record says."""
    pictures = read_set(BUNDLED, "ffhq-mask", 64, records=True)
    told = 0
    for caption, record, mask in zip(pictures.captions, pictures.records, pictures.masks, strict=True):
        wanted = targets(record, mask)
        true = {name: ATTRIBUTES[name][int(value)] for name, value in zip(ATTRIBUTES, wanted, strict=True)}
        seen = {name: values for name, values in claims(caption).items() if wanted[_place(name)] != HIDDEN}
        wrong = [name for name, right in satisfied(seen, true).items() if not right]
        assert not wrong, (caption, wrong, true)
        told += len(seen)
    assert told > 100


def _place(name: str) -> int:
    return list(ATTRIBUTES).index(name)


def test_what_cannot_be_seen_has_no_target() -> None:
    record = {
        "age": 0.5, "sex": "male", "hat": "none", "hat_colour": "red", "hair_style": "bald",
        "hair_colour": "blond", "beard": "none", "expression": "neutral", "glasses": "round",
        "cloth_colour": "pink",
    }  # fmt: skip
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[50:] = LABELS.index("cloth")
    found = dict(zip(ATTRIBUTES, targets(record, mask).tolist(), strict=True))
    assert found["hair colour"] == found["hat colour"] == HIDDEN
    assert ATTRIBUTES["cloth colour"][found["cloth colour"]] == "pink"
    assert ATTRIBUTES["glasses"][found["glasses"]] == "glasses"
    assert ATTRIBUTES["age"][found["age"]] == "middle-aged"
