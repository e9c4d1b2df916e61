"""Deciding what a portrait shows, from its seed and index alone.

The order of the draws belongs to the set: another order, and every picture would change.
"""

from __future__ import annotations

import numpy as np

from .attributes import CLOTH_COLOURS, Attributes
from .captions import caption

HAIR_SHARES = {
    "female": {
        "bald": 1.5,
        "short": 15,
        "bob": 19,
        "long": 29,
        "curly": 13,
        "afro": 6,
        "ponytail": 9,
        "bun": 8,
    },
    "male": {
        "bald": 9,
        "short": 56,
        "bob": 5,
        "long": 7,
        "curly": 12,
        "afro": 6,
        "ponytail": 3,
        "bun": 2,
    },
}
HEAD_SHARES = {
    "oval": 3,
    "round": 2,
    "square": 2,
    "rectangular": 1,
    "triangular": 1,
    "diamond": 1,
    "invertedtriangular": 1,
}
# Pairs of opposite morph targets: common beginning, endings below and above zero, the weight's standard
# deviation and limit.  In names with {} both sides of the face get the same weight.
SIGNED_MORPHS = (
    ("head/head-fat", "decr", "incr", 0.25, 0.6),
    ("head/head-scale-horiz", "decr", "incr", 0.12, 0.25),
    ("head/head-scale-vert", "decr", "incr", 0.10, 0.2),
    ("chin/chin-width", "decr", "incr", 0.3, 0.8),
    ("chin/chin-height", "decr", "incr", 0.25, 0.6),
    ("chin/chin-prominent", "decr", "incr", 0.3, 0.8),
    ("chin/chin-bones", "decr", "incr", 0.3, 0.8),
    ("cheek/{}-cheek-bones", "decr", "incr", 0.35, 0.8),
    ("cheek/{}-cheek-volume", "decr", "incr", 0.35, 0.8),
    ("nose/nose-scale-horiz", "decr", "incr", 0.35, 0.8),
    ("nose/nose-scale-vert", "decr", "incr", 0.25, 0.8),
    ("nose/nose-scale-depth", "decr", "incr", 0.3, 0.8),
    ("nose/nose-hump", "decr", "incr", 0.35, 0.8),
    ("nose/nose-point", "down", "up", 0.35, 0.8),
    ("nose/nose-volume", "decr", "incr", 0.3, 0.8),
    ("mouth/mouth-scale-horiz", "decr", "incr", 0.3, 0.8),
    ("mouth/mouth-upperlip-height", "decr", "incr", 0.3, 0.8),
    ("mouth/mouth-lowerlip-height", "decr", "incr", 0.3, 0.8),
    ("mouth/mouth-upperlip-volume", "decr", "incr", 0.35, 0.8),
    ("mouth/mouth-lowerlip-volume", "decr", "incr", 0.35, 0.8),
    ("eyes/{}-eye-corner1", "down", "up", 0.35, 0.8),
    ("eyes/{}-eye-height2", "decr", "incr", 0.25, 0.8),
    ("eyes/{}-eye-trans", "in", "out", 0.25, 0.5),
    ("ears/{}-ear-scale", "decr", "incr", 0.3, 0.6),
    ("ears/{}-ear-wing", "decr", "incr", 0.3, 0.7),
    ("neck/neck-scale-horiz", "decr", "incr", 0.25, 0.5),
    ("forehead/forehead-scale-vert", "decr", "incr", 0.2, 0.4),
)
EXPRESSIONS = {  # share, and weights of facial action units at strength 1
    "neutral": (42, {}),
    "smiling": (33, {"mouth-corner-puller": 0.9, "mouth-retraction": 0.15}),
    "laughing": (
        9,
        {
            "mouth-corner-puller": 0.85,
            "mouth-open": 0.35,
            "mouth-part-later": 0.4,
            "mouth-upward-retraction": 0.25,
        },
    ),
    "frowning": (
        8,
        {"mouth-depression": 0.9, "eyebrows-left-down": 0.45, "eyebrows-right-down": 0.45},
    ),
    "surprised": (
        8,
        {
            "mouth-open": 0.55,
            "eyebrows-left-up": 0.9,
            "eyebrows-right-up": 0.9,
            "eye-left-opened-up": 0.6,
            "eye-right-opened-up": 0.6,
        },
    ),
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
    hair_style = _pick(rng, HAIR_SHARES[sex])
    hair_colour = _hair_colour(rng, age, skin_tone)
    eye_colour = "brown" if skin_tone > 2.6 else _pick(rng, {"brown": 3, "blue": 3, "green": 2, "gray": 1})
    morphs = _morphs(rng, sex, age, ethnicity)
    expression, units = _expression(rng, ethnicity)
    glasses = _pick(rng, {"none": 84, "round": 6.5, "square": 6.5, "sunglasses": 3})
    hat = _pick(rng, {"none": 85, "beanie": 5.5, "cap": 4.5, "hat": 5})
    background = _background(rng)
    yaw = _normal(rng, 0, 0.33, 0.8)
    pitch = _normal(rng, -0.02, 0.2, 0.5)
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
        parting=_normal(rng, 0, 0.5, 0.8),
        brow=_brow(rng, man),
        beard=_pick(rng, {"none": 64, "stubble": 8, "mustache": 8, "beard": 20}) if man else "none",
        makeup=float(rng.beta(1.0, 2.0)) if not man else 0.0,
        expression=expression,
        glasses=glasses,
        glasses_colour=_pick(rng, {"black": 5, "brown": 2, "red": 1, "blue": 1, "gray": 2}),
        hat=hat,
        hat_colour=_pick(rng, {name: 1 for name in CLOTH_COLOURS}),
        earrings="none" if rng.random() > (0.06 if man else 0.3) else _pick(rng, {"gold": 1, "silver": 1}),
        necklace=bool(rng.random() < (0.02 if man else 0.15)),
        garment=_pick(rng, {"crew": 5, "v-neck": 3, "turtleneck": 1.5, "tank": 0.6 if man else 1.5}),
        cloth_colour=_pick(rng, {name: 1 for name in CLOTH_COLOURS}),
        background=background,
        light=_light(rng),
        yaw=yaw,
        pitch=pitch,
        gaze=[float(0.35 * yaw + rng.normal(0, 0.08)), float(rng.normal(0, 0.05))],
        jitter={name: float(rng.normal(mean, std)) for name, mean, std in _JITTER},
    )
    if attributes.garment == "turtleneck":
        attributes.necklace = False
    if attributes.hat != "none" and attributes.hair_style in ("bun", "afro"):
        attributes.hair_style = "curly" if attributes.hair_style == "afro" else "ponytail"
    attributes.caption = caption(attributes, rng)
    return attributes


_JITTER = (("scale", 1.0, 0.02), ("x", 0.0, 0.003), ("y", 0.0, 0.003))  # of the alignment: mean and deviation


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    names = list(shares)
    p = np.array([shares[n] for n in names], dtype=float)
    return names[int(rng.choice(len(names), p=p / p.sum()))]


def _normal(rng: np.random.Generator, mean: float, deviation: float, limit: float) -> float:
    return float(np.clip(rng.normal(mean, deviation), -limit, limit))


def _morphs(rng: np.random.Generator, sex: str, age: float, ethnicity: dict[str, float]) -> dict[str, float]:
    """Bounded sums: large head targets at full strength make cones, so the individual ones stay modest."""
    weights: dict[str, float] = {}
    for period, share in (("young", 1.0 - age), ("old", age)):
        for race, amount in ethnicity.items():
            weights[f"macrodetails/{race}-{sex}-{period}"] = share * amount
        heavy = _normal(rng, 0.0, 0.45, 0.8)
        for build, amount in (
            ("averageweight", 1 - abs(heavy)),
            ("maxweight", max(heavy, 0)),
            ("minweight", max(-heavy, 0)),
        ):
            weights[f"macrodetails/universal-{sex}-{period}-averagemuscle-{build}"] = share * amount
    shape = _pick(rng, HEAD_SHARES)
    weights[f"head/head-{shape}"] = float(rng.uniform(0.0, 0.55))
    for name, minus, plus, deviation, limit in SIGNED_MORPHS:
        value = _normal(rng, 0.0, deviation, limit)
        for side in "lr":
            weights[f"{name.format(side)}-{plus if value > 0 else minus}"] = abs(value)
    for side in "lr":  # larger eyes read better in few pixels
        weights[f"eyes/{side}-eye-scale-incr"] = 0.75
        for k in (1, 2, 3):
            name = f"eyes/{side}-eye-height{k}-incr"
            weights[name] = weights.get(name, 0.0) + 0.45
    return weights


def _expression(rng: np.random.Generator, ethnicity: dict[str, float]) -> tuple[str, dict[str, float]]:
    """Name and morph weights: MakeHuman has each action unit once per face type."""
    name = _pick(rng, {name: share for name, (share, _) in EXPRESSIONS.items()})
    strength = float(rng.uniform(0.75, 1.1))
    return name, {
        f"expression/units/{race}/{unit}": amount * (weight * strength)
        for unit, weight in EXPRESSIONS[name][1].items()
        for race, amount in ethnicity.items()
    }


def _hair_colour(rng: np.random.Generator, age: float, skin_tone: float) -> str:
    """Rarely dyed; grey with age; fair hair rather with fair skin."""
    if rng.random() < 0.04:
        return _pick(rng, {"blue": 1, "green": 1, "pink": 1})
    if rng.random() < np.clip((age - 0.5) * 1.9, 0, 0.85):
        return _pick(rng, {"gray": 3, "white": 2})
    fair = float(np.clip(1.3 - skin_tone / 2.2, 0.04, 1))
    return _pick(rng, {"black": 1.1, "brown": 1.1, "blond": 1.2 * fair, "red": 0.75 * fair})


def _brow(rng: np.random.Generator, man: bool) -> dict[str, float]:
    return {
        "thickness": float(rng.uniform(0.036, 0.064) * (1.15 if man else 0.9)),
        "arch": float(rng.uniform(0.0, 0.075)),
        "tilt": float(rng.normal(0.0, 0.03)),
        "lift": float(rng.uniform(-0.02, 0.05)),
        "length": float(rng.uniform(0.92, 1.08)),
    }


def _light(rng: np.random.Generator) -> dict[str, float]:
    return {
        "azimuth": float(rng.uniform(-1.0, 1.0)),
        "height": float(rng.uniform(0.35, 1.0)),
        "key": float(rng.uniform(0.75, 1.25)),
        "fill": float(rng.uniform(0.35, 0.65)),
        "warmth": float(rng.normal(0, 0.06)),
    }


def _background(rng: np.random.Generator) -> list[list[float]]:
    """Two close sRGB colours for a soft vertical gradient; mostly muted, sometimes vivid."""
    hue, vivid, value = rng.random(), rng.random() ** 2 * 0.6, rng.uniform(0.25, 0.95)
    base = np.clip(1 + np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3]))), 0, 1)
    colour = value * (1 - vivid + vivid * base)
    step = rng.uniform(-0.18, 0.18)
    return [[float(c) for c in np.clip(colour + s * step, 0.02, 0.98)] for s in (0.5, -0.5)]
