"""What ``evaluate.py quality`` and ``evaluate.py geometry`` do, apart from their command line.

The training loop calls :func:`generator_quality` too, so its curves and the command's numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from datasets.labels import label_set
from datasets.portraits import BUNDLED, BUNDLED_VIEWS
from dnnlib.errors import UserError
from training.config import GeneratorConfig, TrainConfig
from training.generator import Generator
from training.judges.identity import Identifier
from training.judges.reader import Reader
from training.metrics.features import FeatureNetwork, feature_network
from training.metrics.fitting import Fit, inversion_error, unfitted_error
from training.metrics.geometry import (
    Consistency,
    Embed,
    eikonal_residual,
    exchanged,
    score_consistency,
    sights_of_seeds,
    true_sights,
)
from training.metrics.portrait_set import HELD_OUT, PortraitSet, read_set
from training.metrics.quality import Quality, score_quality
from training.metrics.sources import (
    Portraits,
    generated_portraits,
    noise_portraits,
    random_generator,
    true_portraits,
    untrained_generator,
)

_BUNDLED_SIDE = 64
_MOST_IN_TRAINING = 1000  # portraits that a run is scored on now and then, while it waits
FEWEST = 64  # pictures of a set that are looked at even when its held-out share is smaller
Say = Callable[[str], None]


@dataclass(frozen=True)
class Judges:
    """The networks that judge quality."""

    features: FeatureNetwork
    reader: Reader | None


def judges(features: str, labels: str, device: str = "cpu", say: Say = print) -> Judges:
    """The chosen feature network, and the bundled reader where it knows the labels."""
    reader = Reader.load(device=device)
    if reader.config.labels != labels:
        say(f"mask: not scored, the bundled reader knows {reader.config.labels} and not {labels}")
        reader = None
    return Judges(feature_network(features, device, say), reader)


def true_halves(
    folder: Path | str,
    masks: Path | str | None,
    config: GeneratorConfig,
    held_out: float = HELD_OUT,
    say: Say = print,
) -> tuple[PortraitSet, PortraitSet]:
    """The held-out end of a data set in two halves of equal size: to compare with, and to be compared."""
    pictures = read_set(
        folder, config.labels, config.resolution, masks=masks, share=held_out, at_least=FEWEST, say=say
    )
    half = len(pictures) // 2
    if half < 8:
        raise UserError(f"{folder} has {len(pictures)} pictures: distances between sets need at least 16")
    return pictures.take(slice(half)), pictures.take(slice(half, 2 * half))


def generator_quality(
    generator: Generator, true: PortraitSet, networks: Judges, *, seed: int = 0, truncation: float = 1.0
) -> Quality:
    """As many generated portraits as there are true ones, from the same cameras."""
    made = generated_portraits(generator, true.cameras, seed=seed, truncation=truncation)
    return _quality(made, true, networks)


def _quality(portraits: Portraits, true: PortraitSet, networks: Judges) -> Quality:
    # the generator's label set is the data's: it was read with it
    labels = label_set(networks.reader.config.labels) if networks.reader else None
    return score_quality(portraits, true_portraits(true), networks.features, networks.reader, labels)


def evaluate_quality(
    generator: Generator,
    halves: tuple[PortraitSet, PortraitSet],
    networks: Judges,
    *,
    seed: int = 0,
    truncation: float = 1.0,
    references: bool = True,
    say: Say = print,
) -> dict[str, dict]:
    """Scores by source: 'network'; to compare, 'true' (the other half), 'untrained', 'random', 'noise'."""
    true, other = halves
    say(f"network: {len(true)} portraits")
    found = {"network": generator_quality(generator, true, networks, seed=seed, truncation=truncation)}
    if references:
        say("for comparison: the other half of the true data, untrained and random generators, noise")
        config = generator.config
        found["true"] = _quality(true_portraits(other), true, networks)
        for name, made in _other_generators(generator, seed):
            found[name] = generator_quality(made, true, networks, seed=seed)
        found["noise"] = _quality(
            noise_portraits(len(true), config.resolution, config.parts, seed), true, networks
        )
    return {name: asdict(score) for name, score in found.items()}


def _other_generators(generator: Generator, seed: int) -> Iterator[tuple[str, Generator]]:
    device = next(generator.parameters()).device
    yield "untrained", untrained_generator(generator.config, seed).to(device)
    yield "random", random_generator(generator.config, seed).to(device)


def fits(folder: Path, config: GeneratorConfig, option: str, say: Say) -> bool:
    """Whether a bundled set can be used with this generator: those that the user names must."""
    if folder not in (BUNDLED, BUNDLED_VIEWS):
        return True
    same = config.labels == "ffhq-mask" and config.resolution == _BUNDLED_SIDE
    if not same:
        say(f"the bundled pictures do not fit this generator: give {option} for their share of the scores")
    return same


@dataclass(frozen=True)
class GeometryOptions:
    """What is measured, and how much of it."""

    seeds: tuple[int, ...] = tuple(range(16))
    truncation: float = 1.0
    inversions: int = 8  # held-out portraits that latents are fitted to; 0: none
    fit: Fit = Fit()
    references: bool = True


def evaluate_geometry(
    generator: Generator,
    options: GeometryOptions,
    *,
    views: PortraitSet | None,
    held_out: PortraitSet | None,
    embed: Embed | None,
    say: Say = print,
) -> dict[str, dict]:
    """Scores by source, as :func:`evaluate_quality`; 'exchanged' are true views of different heads as one.

    What a fit is compared with is not fitted: the generator's mean head, and the untrained one's.

    ``views``: true heads from several sides, with depth; ``held_out``: portraits with depth and normals.
    """
    sights = None if views is None else true_sights(views)  # says what is wrong with them before the work
    say(f"network: {len(options.seeds)} heads from seven sides")
    found = {"network": _geometry(generator, options.seeds, options.truncation, embed)}
    chosen = None
    if held_out is not None and options.inversions:
        chosen = held_out.take(slice(options.inversions))
        found["network"]["inversion"] = asdict(inversion_error(generator, chosen, options.fit, say))
    if options.references:
        say("for comparison: true heads, true views of different heads, untrained and random generators")
        if chosen is not None:
            found["unfitted"] = {"inversion": asdict(unfitted_error(generator, chosen))}
        if sights is not None:
            found["true"] = asdict(score_consistency(sights, embed))
            found["exchanged"] = asdict(score_consistency(exchanged(sights), embed))
        for name, made in _other_generators(generator, 0):
            found[name] = _geometry(made, options.seeds, 1.0, embed)
            if chosen is not None and name == "untrained":
                found[name]["inversion"] = asdict(unfitted_error(made, chosen))
    return found


def _geometry(generator: Generator, seeds: tuple[int, ...], truncation: float, embed: Embed | None) -> dict:
    sights = sights_of_seeds(generator, seeds, truncation=truncation)
    scores: Consistency = score_consistency(sights, embed)
    residual = eikonal_residual(generator, seeds[:4], truncation=truncation)
    return {**asdict(scores), "eikonal": residual}


def identifier(labels: str, device: str = "cpu", say: Say = print) -> Embed | None:
    """The bundled identity network, where it knows the labels."""
    found = Identifier.load(device)
    if found.reader.config.labels == labels:
        return found
    say(f"identity: not scored, the bundled network knows {found.reader.config.labels} and not {labels}")
    return None


def curves(score: Quality) -> dict[str, float]:
    """A quality as the training log has it."""
    values = {name: value for name, value in asdict(score).items() if isinstance(value, float)}
    return {f"metrics/{name}": value for name, value in values.items()}


class TrainingScores:
    """What a run writes to its curves every ``metrics_kimg``: the scores of ``evaluate.py quality``."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        data, sizes = config.data, config.generator
        halves = true_halves(data.images, data.masks or None, sizes)
        self.true = halves[0].take(slice(_MOST_IN_TRAINING))
        self.judges = judges("auto", sizes.labels, str(device))

    def __call__(self, generator: Generator) -> dict[str, float]:
        """On the generator's device; the run's random numbers are left alone."""
        with torch.random.fork_rng():
            return curves(generator_quality(generator, self.true, self.judges))
