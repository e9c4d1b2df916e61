"""What one portrait shows: its attributes, and the colours that their words mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
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
    hair_style: str  # bald, short, bob, long, curly, afro, ponytail, bun
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
    hat: str  # none, beanie (knitted), cap (with a visor), hat (with a brim all round)
    hat_colour: str
    earrings: str  # none, gold, silver
    necklace: bool
    garment: str  # crew, v-neck, turtleneck, tank
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

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Attributes:
        """What a set's attributes/ says; what the rendering added to it, such as the camera, is left out."""
        return cls(**{item.name: record[item.name] for item in fields(cls) if item.name in record})

    @property
    def age_word(self) -> str:
        return "young" if self.age < 0.3 else "old" if self.age > 0.72 else "middle-aged"
