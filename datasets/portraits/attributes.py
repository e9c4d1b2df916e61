"""What one portrait shows: sampled attributes, and the caption that tells them.

The captions' vocabulary is closed (`VOCABULARY`), so that a small text encoder can be trained on them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

HAIR_COLOURS = {  # linear RGB
    "black": (0.012, 0.010, 0.009),
    "brown": (0.075, 0.033, 0.014),
    "blond": (0.50, 0.31, 0.11),
    "red": (0.30, 0.065, 0.015),
    "gray": (0.24, 0.24, 0.25),
    "white": (0.68, 0.67, 0.65),
    "blue": (0.03, 0.10, 0.45),
    "green": (0.04, 0.27, 0.08),
    "pink": (0.65, 0.13, 0.30),
}
EYE_COLOURS = {
    "brown": (0.085, 0.035, 0.012),
    "blue": (0.06, 0.20, 0.48),
    "green": (0.07, 0.22, 0.08),
    "gray": (0.22, 0.25, 0.28),
}
CLOTH_COLOURS = {
    "black": (0.02, 0.02, 0.022),
    "white": (0.75, 0.75, 0.73),
    "gray": (0.22, 0.22, 0.23),
    "red": (0.48, 0.035, 0.03),
    "blue": (0.035, 0.09, 0.40),
    "green": (0.035, 0.22, 0.07),
    "yellow": (0.72, 0.46, 0.04),
    "purple": (0.17, 0.04, 0.30),
    "orange": (0.68, 0.18, 0.02),
    "pink": (0.70, 0.24, 0.36),
}
SKIN_TONES = np.array(  # linear RGB, light to dark
    [
        (0.74, 0.49, 0.38),
        (0.66, 0.40, 0.28),
        (0.56, 0.32, 0.20),
        (0.43, 0.23, 0.13),
        (0.29, 0.14, 0.075),
        (0.16, 0.075, 0.042),
        (0.085, 0.042, 0.026),
    ]
)
HAIR_STYLES = ("bald", "short", "bob", "long", "curly", "afro", "ponytail", "bun")
HATS = ("beanie", "cap", "hat")  # knitted; with a visor; with a brim all round
GARMENTS = ("crew", "v-neck", "turtleneck", "tank")


@dataclass
class Attributes:
    """Everything that was decided about a portrait before it was built (JSON-serialisable)."""

    index: int
    seed: int
    sex: str
    age: float  # 0 = young adult, 1 = old
    ethnicity: dict[str, float]  # weights of the mesh's three face types, sum 1
    morphs: dict[str, float]  # morph target -> weight
    skin_tone: float  # 0 light .. 6 dark, index into SKIN_TONES
    eye_colour: str
    hair_style: str
    hair_colour: str
    hair_length: float  # [0, 1] within its style
    hair_wave: float
    hair_volume: float
    fringe: bool
    parting: float  # [-1, 1], person's left positive
    brow: dict[str, float]
    beard: str  # none, stubble, mustache, beard
    makeup: float
    expression: str  # neutral, smiling, laughing, frowning, surprised
    glasses: str  # none, round, square, sunglasses
    glasses_colour: str
    hat: str
    hat_colour: str
    earrings: str  # none, gold, silver
    necklace: bool
    garment: str
    cloth_colour: str
    background: list[list[float]]  # two sRGB colours, top and bottom
    light: dict[str, float]
    yaw: float
    pitch: float
    gaze: list[float]
    jitter: dict[str, float] = field(default_factory=dict)
    caption: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def age_word(self) -> str:
        return "young" if self.age < 0.3 else "old" if self.age > 0.72 else "middle-aged"


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    p = np.array([weights[n] for n in names], dtype=float)
    return names[int(rng.choice(len(names), p=p / p.sum()))]


def _morphs(rng: np.random.Generator, sex: str, age: float, ethnicity: dict[str, float]) -> dict[str, float]:
    """Bounded sums: large head targets at full strength make cones, so the individual ones stay modest."""
    weights: dict[str, float] = {}
    ages = {"young": 1.0 - age, "old": age}
    for period, share in ages.items():
        for race, amount in ethnicity.items():
            weights[f"macrodetails/{race}-{sex}-{period}"] = share * amount
        heavy = float(np.clip(rng.normal(0.0, 0.45), -0.8, 0.8))
        for build, amount in (
            ("averageweight", 1 - abs(heavy)),
            ("maxweight", max(heavy, 0)),
            ("minweight", max(-heavy, 0)),
        ):
            weights[f"macrodetails/universal-{sex}-{period}-averagemuscle-{build}"] = share * amount

    def signed(minus: str, plus: str, sigma: float, limit: float = 0.8, both: bool = False) -> None:
        value = float(np.clip(rng.normal(0.0, sigma), -limit, limit))
        name = plus if value > 0 else minus
        for side in ("l-", "r-") if both else ("",):
            folder, _, rest = name.partition("/")
            weights[f"{folder}/{side}{rest}"] = abs(value)

    shape = _pick(
        rng,
        {
            "oval": 3,
            "round": 2,
            "square": 2,
            "rectangular": 1,
            "triangular": 1,
            "diamond": 1,
            "invertedtriangular": 1,
        },
    )
    weights[f"head/head-{shape}"] = float(rng.uniform(0.0, 0.55))
    signed("head/head-fat-decr", "head/head-fat-incr", 0.25, 0.6)
    signed("head/head-scale-horiz-decr", "head/head-scale-horiz-incr", 0.12, 0.25)
    signed("head/head-scale-vert-decr", "head/head-scale-vert-incr", 0.10, 0.2)
    signed("chin/chin-width-decr", "chin/chin-width-incr", 0.3)
    signed("chin/chin-height-decr", "chin/chin-height-incr", 0.25, 0.6)
    signed("chin/chin-prominent-decr", "chin/chin-prominent-incr", 0.3)
    signed("chin/chin-bones-decr", "chin/chin-bones-incr", 0.3)
    signed("cheek/cheek-bones-decr", "cheek/cheek-bones-incr", 0.35, both=True)
    signed("cheek/cheek-volume-decr", "cheek/cheek-volume-incr", 0.35, both=True)
    signed("nose/nose-scale-horiz-decr", "nose/nose-scale-horiz-incr", 0.35)
    signed("nose/nose-scale-vert-decr", "nose/nose-scale-vert-incr", 0.25)
    signed("nose/nose-scale-depth-decr", "nose/nose-scale-depth-incr", 0.3)
    signed("nose/nose-hump-decr", "nose/nose-hump-incr", 0.35)
    signed("nose/nose-point-down", "nose/nose-point-up", 0.35)
    signed("nose/nose-volume-decr", "nose/nose-volume-incr", 0.3)
    signed("mouth/mouth-scale-horiz-decr", "mouth/mouth-scale-horiz-incr", 0.3)
    signed("mouth/mouth-upperlip-height-decr", "mouth/mouth-upperlip-height-incr", 0.3)
    signed("mouth/mouth-lowerlip-height-decr", "mouth/mouth-lowerlip-height-incr", 0.3)
    signed("mouth/mouth-upperlip-volume-decr", "mouth/mouth-upperlip-volume-incr", 0.35)
    signed("mouth/mouth-lowerlip-volume-decr", "mouth/mouth-lowerlip-volume-incr", 0.35)
    signed("eyes/eye-corner1-down", "eyes/eye-corner1-up", 0.35, both=True)
    signed("eyes/eye-height2-decr", "eyes/eye-height2-incr", 0.25, both=True)
    signed("eyes/eye-trans-in", "eyes/eye-trans-out", 0.25, 0.5, both=True)
    signed("ears/ear-scale-decr", "ears/ear-scale-incr", 0.3, 0.6, both=True)
    signed("ears/ear-wing-decr", "ears/ear-wing-incr", 0.3, 0.7, both=True)
    signed("neck/neck-scale-horiz-decr", "neck/neck-scale-horiz-incr", 0.25, 0.5)
    signed("forehead/forehead-scale-vert-decr", "forehead/forehead-scale-vert-incr", 0.2, 0.4)
    for side in "lr":  # larger eyes read better in few pixels
        weights[f"eyes/{side}-eye-scale-incr"] = 0.75
        for k in (1, 2, 3):
            name = f"eyes/{side}-eye-height{k}-incr"
            weights[name] = weights.get(name, 0.0) + 0.45
    return weights


def _expression(rng: np.random.Generator, ethnicity: dict[str, float]) -> tuple[str, dict[str, float]]:
    name = _pick(rng, {"neutral": 42, "smiling": 33, "laughing": 9, "frowning": 8, "surprised": 8})
    s = float(rng.uniform(0.75, 1.1))
    units = {
        "neutral": {},
        "smiling": {"mouth-corner-puller": 0.9 * s, "mouth-retraction": 0.15 * s},
        "laughing": {
            "mouth-corner-puller": 0.85 * s,
            "mouth-open": 0.35 * s,
            "mouth-part-later": 0.4 * s,
            "mouth-upward-retraction": 0.25 * s,
        },
        "frowning": {
            "mouth-depression": 0.9 * s,
            "eyebrows-left-down": 0.45 * s,
            "eyebrows-right-down": 0.45 * s,
        },
        "surprised": {
            "mouth-open": 0.55 * s,
            "eyebrows-left-up": 0.9 * s,
            "eyebrows-right-up": 0.9 * s,
            "eye-left-opened-up": 0.6 * s,
            "eye-right-opened-up": 0.6 * s,
        },
    }[name]
    return name, {
        f"expression/units/{race}/{unit}": amount * weight
        for unit, weight in units.items()
        for race, amount in ethnicity.items()
    }


def sample(seed: int, index: int) -> Attributes:
    """The attributes of picture `index` of the set `seed`; the same on every machine and in any order."""
    rng = np.random.default_rng([seed, index])
    sex = "female" if rng.random() < 0.5 else "male"
    man = sex == "male"
    age = float(np.clip(rng.beta(1.0, 1.35), 0, 1))
    mix = rng.dirichlet([0.45, 0.45, 0.45])
    ethnicity = {n: float(round(v, 4)) for n, v in zip(("caucasian", "african", "asian"), mix, strict=True)}
    tone = 0.9 * mix[0] + 4.7 * mix[1] + 1.7 * mix[2] + rng.normal(0, 0.6)
    skin_tone = float(np.clip(tone, 0, 6))

    if man:
        styles = {
            "bald": 9,
            "short": 56,
            "bob": 5,
            "long": 7,
            "curly": 12,
            "afro": 6,
            "ponytail": 3,
            "bun": 2,
        }
    else:
        styles = {
            "bald": 1.5,
            "short": 15,
            "bob": 19,
            "long": 29,
            "curly": 13,
            "afro": 6,
            "ponytail": 9,
            "bun": 8,
        }
    hair_style = _pick(rng, styles)
    if rng.random() < 0.04:
        hair_colour = _pick(rng, {"blue": 1, "green": 1, "pink": 1})
    elif rng.random() < np.clip((age - 0.5) * 1.9, 0, 0.85):
        hair_colour = _pick(rng, {"gray": 3, "white": 2})
    else:
        fair = float(np.clip(1.3 - skin_tone / 2.2, 0.04, 1))
        hair_colour = _pick(rng, {"black": 1.1, "brown": 1.1, "blond": 1.2 * fair, "red": 0.75 * fair})
    eye_colour = "brown" if skin_tone > 2.6 else _pick(rng, {"brown": 3, "blue": 3, "green": 2, "gray": 1})

    morphs = _morphs(rng, sex, age, ethnicity)
    expression, units = _expression(rng, ethnicity)
    beards = {"none": 64, "stubble": 8, "mustache": 8, "beard": 20}
    glasses = _pick(rng, {"none": 84, "round": 6.5, "square": 6.5, "sunglasses": 3})
    hat = _pick(rng, {"none": 85, "beanie": 5.5, "cap": 4.5, "hat": 5})
    background = _background(rng)
    yaw = float(np.clip(rng.normal(0, 0.33), -0.8, 0.8))
    pitch = float(np.clip(rng.normal(-0.02, 0.2), -0.5, 0.5))
    attributes = Attributes(
        index=index,
        seed=seed,
        sex=sex,
        age=age,
        ethnicity=ethnicity,
        morphs={**morphs, **units},
        skin_tone=skin_tone,
        eye_colour=eye_colour,
        hair_style=hair_style,
        hair_colour=hair_colour,
        hair_length=float(rng.random()),
        hair_wave=float(rng.random()),
        hair_volume=float(rng.random()),
        fringe=bool(rng.random() < (0.16 if man else 0.3)),
        parting=float(np.clip(rng.normal(0, 0.5), -0.8, 0.8)),
        brow={
            "thickness": float(rng.uniform(0.036, 0.064) * (1.15 if man else 0.9)),
            "arch": float(rng.uniform(0.0, 0.075)),
            "tilt": float(rng.normal(0.0, 0.03)),
            "lift": float(rng.uniform(-0.02, 0.05)),
            "length": float(rng.uniform(0.92, 1.08)),
        },
        beard=_pick(rng, beards) if man else "none",
        makeup=float(rng.beta(1.0, 2.0) if not man else 0.0),
        expression=expression,
        glasses=glasses,
        glasses_colour=_pick(rng, {"black": 5, "brown": 2, "red": 1, "blue": 1, "gray": 2}),
        hat=hat,
        hat_colour=_pick(rng, {n: 1 for n in CLOTH_COLOURS}),
        earrings="none" if rng.random() > (0.06 if man else 0.3) else _pick(rng, {"gold": 1, "silver": 1}),
        necklace=bool(rng.random() < (0.02 if man else 0.15)),
        garment=_pick(rng, {"crew": 5, "v-neck": 3, "turtleneck": 1.5, "tank": 0.6 if man else 1.5}),
        cloth_colour=_pick(rng, {n: 1 for n in CLOTH_COLOURS}),
        background=background,
        light={
            "azimuth": float(rng.uniform(-1.0, 1.0)),
            "height": float(rng.uniform(0.35, 1.0)),
            "key": float(rng.uniform(0.75, 1.25)),
            "fill": float(rng.uniform(0.35, 0.65)),
            "warmth": float(rng.normal(0, 0.06)),
        },
        yaw=yaw,
        pitch=pitch,
        gaze=[float(0.35 * yaw + rng.normal(0, 0.08)), float(rng.normal(0, 0.05))],
        jitter={
            "scale": float(rng.normal(1.0, 0.02)),
            "x": float(rng.normal(0, 0.003)),
            "y": float(rng.normal(0, 0.003)),
        },
    )
    if attributes.garment == "turtleneck":
        attributes.necklace = False
    if attributes.hat != "none" and attributes.hair_style in ("bun", "afro"):
        attributes.hair_style = "curly" if attributes.hair_style == "afro" else "ponytail"
    attributes.caption = caption(attributes, rng)
    return attributes


def _background(rng: np.random.Generator) -> list[list[float]]:
    """Two close sRGB colours for a soft vertical gradient; mostly muted, sometimes vivid."""
    hue, vivid, value = rng.random(), rng.random() ** 2 * 0.6, rng.uniform(0.25, 0.95)
    base = np.clip(1 + np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3]))), 0, 1)
    colour = value * (1 - vivid + vivid * base)
    step = rng.uniform(-0.18, 0.18)
    return [[float(c) for c in np.clip(colour + s * step, 0.02, 0.98)] for s in (0.5, -0.5)]


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
