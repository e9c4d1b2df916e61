"""Sentences that tell a portrait's attributes.

Their vocabulary is closed (`VOCABULARY`), so that a small text encoder can be trained on them.
"""

from __future__ import annotations

import re

import numpy as np

from .attributes import Attributes


def _hair_words(a: Attributes, brief: bool) -> str:
    """The hair as the picture shows it."""
    if a.hair_style == "bald":
        return ""
    colour = f"{a.hair_colour} hair"
    if brief:
        return colour
    length = a.hair_length
    return {
        "short": f"short {colour}",
        "bob": f"a {a.hair_colour} bob" if a.hair_wave < 0.5 else f"medium {colour}",
        "long": f"long {'wavy ' if a.hair_wave > 0.6 else 'straight ' if a.hair_wave < 0.3 else ''}{colour}",
        "curly": f"{'long' if length > 0.55 else 'short'} curly {colour}",
        "afro": f"a {a.hair_colour} afro",
        "ponytail": f"{colour} in a ponytail",
        "bun": f"{colour} in a bun",
    }[a.hair_style]


def caption(a: Attributes, rng: np.random.Generator) -> str:
    """One sentence that is true of the picture; details are left out at random, so short ones occur too."""
    detail = rng.uniform(0.35, 1.0)

    def told(p: float = 1.0) -> bool:
        return bool(rng.random() < p * detail)

    noun = "woman" if a.sex == "female" else "man"
    if rng.random() < 0.08:
        noun = "person"
    age = f"{a.age_word} " if told() else ""
    bald = "bald " if a.hair_style == "bald" and a.hat == "none" and told(1.3) else ""
    article = "an" if age.startswith("old") else "a"
    start = str(rng.choice(["a portrait of ", "a photo of ", "", "", "a picture of "]))
    text = f"{start}{article} {age}{bald}{noun}"
    features = []
    hair = _hair_words(a, brief=bool(rng.random() < 0.25))
    if hair and told(1.25):
        features.append(hair)
    if a.beard in ("beard", "mustache") and told(1.3):
        features.append(f"a {a.beard}")
    if a.beard == "stubble" and told(0.7):
        features.append("stubble")
    if a.eye_colour != "brown" and a.glasses != "sunglasses" and told(0.4):
        features.append(f"{a.eye_colour} eyes")
    if features:
        text += " with " + " and ".join([", ".join(features[:-1])] * (len(features) > 1) + features[-1:])
    worn = []
    if a.glasses != "none" and told(1.3):
        kind = {"round": "round glasses", "square": "square glasses", "sunglasses": "sunglasses"}[a.glasses]
        worn.append("glasses" if a.glasses != "sunglasses" and rng.random() < 0.45 else kind)
    if a.hat != "none" and told(1.35):
        kind = "hat" if rng.random() < 0.3 else a.hat
        worn.append(f"a {a.hat_colour} {kind}" if told(1.2) else f"a {kind}")
    if a.necklace and told(0.5):
        worn.append("a necklace")
    if told(0.45):
        clothes = {"turtleneck": "turtleneck", "tank": "top"}.get(a.garment, "shirt")
        article = "an" if a.cloth_colour == "orange" else "a"
        worn.append(f"{article} {a.cloth_colour} {clothes}")
    if worn:
        joined = " and ".join([", ".join(worn[:-1])] * (len(worn) > 1) + worn[-1:])
        text += f" wearing {joined}".replace("a orange", "an orange")
    if a.expression != "neutral" and told(1.2):
        text += f", {a.expression}"
    return text


def brief_caption(a: Attributes, rng: np.random.Generator) -> str:
    """A noun with one thing that is true of the picture, as people ask for edits: 'a man wearing a red hat'.

    A hat or a shirt is told as often as hair, so that its colour is learned as well.
    """
    noun = "person" if rng.random() < 0.5 else "woman" if a.sex == "female" else "man"
    clothes = {"turtleneck": "turtleneck", "tank": "top"}.get(a.garment, "shirt")
    told = [f"wearing a {a.cloth_colour} {clothes}"]
    hair = _hair_words(a, brief=bool(rng.random() < 0.5))
    if a.hat != "none":
        told.append(f"wearing a {a.hat_colour} {'hat' if rng.random() < 0.6 else a.hat}")
    if hair:
        told.append(f"with {hair}")
    if a.beard in ("beard", "mustache"):
        told.append(f"with a {a.beard}")
    if a.glasses != "none":
        told.append(f"wearing {'sunglasses' if a.glasses == 'sunglasses' else 'glasses'}")
    return f"a {noun} {rng.choice(told)}".replace("a orange", "an orange")


_WORDS = """
a an and bald beanie beard blond blue bob black brown bun cap curly afro eyes frowning glasses gray
green hair hat in laughing long man medium middle aged mustache necklace of old orange person photo
picture pink ponytail portrait purple red round shirt short smiling square straight stubble
sunglasses surprised top turtleneck wavy wearing white with woman yellow young
"""
VOCABULARY = tuple(sorted(set(_WORDS.split())))


def words(text: str) -> list[str]:
    """Lower-case words of a caption (a hyphen separates)."""
    return re.findall(r"[a-z]+", text.lower())
