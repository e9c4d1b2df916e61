"""What can be read off a portrait: the synthetic set's attributes, in pictures' records and in sentences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datasets.labels import label_set
from datasets.portraits.attributes import CLOTH_COLOURS, HAIR_COLOURS
from training.prior.vocabulary import split_words

# attribute -> its values, in the order of the classifier's outputs
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "sex": ("female", "male"),
    "age": ("young", "middle-aged", "old"),
    "hair style": ("bald", "short", "bob", "long", "curly", "afro", "ponytail", "bun"),
    "hair colour": tuple(HAIR_COLOURS),
    "beard": ("none", "stubble", "mustache", "beard"),
    "expression": ("neutral", "smiling", "laughing", "frowning", "surprised"),
    "glasses": ("none", "glasses", "sunglasses"),
    "hat": ("none", "beanie", "cap", "hat"),
    "hat colour": tuple(CLOTH_COLOURS),
    "cloth colour": tuple(CLOTH_COLOURS),
}
HIDDEN = -1  # target of what a picture does not show
_SEEN_FROM = 12  # pixels of 64 x 64 that hair, hat or cloth must have for its colour to be seen


def targets(record: dict[str, Any], mask: Tensor) -> Tensor:
    """(A,) int64: the value of each attribute in a picture with this record and class map (H, W)."""
    labels = label_set("ffhq-mask")
    enough = _SEEN_FROM * mask.numel() / 64**2

    def seen(name: str) -> bool:
        return int((mask == labels.index(name)).sum()) >= enough

    age = record["age"]
    values = {
        "sex": record["sex"],
        "age": "young" if age < 0.3 else "old" if age > 0.72 else "middle-aged",  # as the captions have it
        "hair style": record["hair_style"] if record["hat"] == "none" else None,
        "hair colour": record["hair_colour"] if seen("hair") else None,
        "beard": record["beard"],
        "expression": record["expression"],
        "glasses": {"round": "glasses", "square": "glasses"}.get(record["glasses"], record["glasses"]),
        "hat": record["hat"],
        "hat colour": record["hat_colour"] if seen("hat") else None,
        "cloth colour": record["cloth_colour"] if seen("cloth") else None,
    }
    return torch.tensor(
        [HIDDEN if values[name] is None else ATTRIBUTES[name].index(values[name]) for name in ATTRIBUTES]
    )


_HAIR_WORDS = ("hair", "bob", "afro", "ponytail", "bun")
_HAT_WORDS = ("hat", "beanie", "cap")
_CLOTH_WORDS = ("shirt", "top", "turtleneck")
_ANY = frozenset  # a claim admits several values


def claims(prompt: str) -> dict[str, frozenset[str]]:
    """What a sentence says in the words of the captions: attribute -> the values that make it true.

    A colour belongs to the next hair, hat or garment after it. Words that no attribute stands for (eyes,
    necklace, wavy) claim nothing.

        >>> claims("a woman wearing a red hat")["hat colour"]
        frozenset({'red'})
    """
    found: dict[str, frozenset[str]] = {}
    words = split_words(prompt.replace("middle-aged", "middle"))
    for position, word in enumerate(words):
        colour = _colour_before(words, position)
        if word in ("woman", "man"):
            found["sex"] = _ANY(["female" if word == "woman" else "male"])
        elif word in ("young", "middle", "old"):
            found["age"] = _ANY(["middle-aged" if word == "middle" else word])
        elif word in ATTRIBUTES["expression"]:
            found["expression"] = _ANY([word])
        elif word in ("stubble", "mustache", "beard"):
            found["beard"] = _ANY([word])
        elif word in ("glasses", "sunglasses"):
            found["glasses"] = _ANY([word])
        elif word in _HAT_WORDS:
            found["hat"] = _ANY(_HAT_WORDS if word == "hat" else [word])  # captions call all of them hats
            if colour:
                found["hat colour"] = _ANY([colour])
        elif word in _CLOTH_WORDS and colour:
            found["cloth colour"] = _ANY([colour])
        elif word in _HAIR_WORDS:
            if colour in HAIR_COLOURS:
                found["hair colour"] = _ANY([colour])
            if word != "hair":
                found["hair style"] = _ANY([word])
            elif "hair style" not in found:
                found |= _hair_style(words[max(0, position - 5) : position])
        elif word == "bald":
            found["hair style"] = _ANY(["bald"])
    return found


def _colour_before(words: list[str], position: int) -> str | None:
    """The colour word right before, perhaps with one word between ('red curly hair')."""
    for word in reversed(words[max(0, position - 2) : position]):
        if word in CLOTH_COLOURS or word in HAIR_COLOURS:
            return word
    return None


def _hair_style(before: list[str]) -> dict[str, frozenset[str]]:
    """Style from the words before 'hair', as captions use them: what is tied is long too."""
    if "curly" in before:
        return {"hair style": _ANY(["curly", "afro"])}
    if "long" in before:
        return {"hair style": _ANY(["long", "curly"])}
    if "medium" in before:
        return {"hair style": _ANY(["bob"])}
    if "short" in before:
        return {"hair style": _ANY(["short", "bob"])}
    return {}


def satisfied(claimed: dict[str, frozenset[str]], read: dict[str, str]) -> dict[str, bool]:
    """Whether what was ``read`` off a picture (attribute -> value) is as claimed, attribute by attribute."""
    return {name: read[name] in values for name, values in claimed.items()}
