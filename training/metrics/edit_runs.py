"""What ``evaluate.py edits`` does, apart from its command line: the fixed cases, a folder each, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets.labels import LabelSet
from dnnlib.errors import UserError
from dnnlib.files import read_json, write_json
from training.editing.cases import Case, Unpaintable, contact_sheet, decided_by, run_case
from training.editing.report import REPORT
from training.editing.settings import EditSettings
from training.metrics.edit_cases import FIRST_SEED, FIXED_CASES, cases_from
from training.metrics.edits import EditJudges, EditScore, means, score_folder
from training.metrics.tables import rounded
from training.pictures import write_png
from training.prior import load_prior

Say = Callable[[str], None]
_SCORES = "scores.json"  # of a case, in its folder; written last, so a case that has it is done
_RUN = "edits.json"  # in the folder of all


@dataclass(frozen=True)
class EditRun:
    """Which edits, with what, and where to."""

    network: Path  # the file itself, see find_network
    prior: str
    outdir: Path
    settings: EditSettings
    device: str = "cpu"
    rescore: bool = False  # judge finished edits again: the judges may have changed
    first_seed: int = FIRST_SEED  # of the cases


def chosen_cases(text: str | None, first_seed: int = FIRST_SEED) -> list[Case]:
    """'0-9', '3,7-8' or names ('hat-red,bald-1') of the fixed list; None: all. The first case has the seed
    ``first_seed``."""
    known = cases_from(first_seed)
    if text is None:
        return list(known)
    names = {case.name: number for number, case in enumerate(known)}
    found: list[int] = []
    for part in (word.strip() for word in text.split(",")):
        if part in names:
            found.append(names[part])
            continue
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise UserError(f"--cases '{text}': '{part}' is neither a number as 3 or 0-9 nor a case's name")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= len(known):
            raise UserError(f"--cases '{text}': the cases are 0 to {len(known) - 1}")
        found += numbers
    return [known[number] for number in dict.fromkeys(found)]


def evaluate_edits(run: EditRun, cases: Sequence[Case], labels: LabelSet, say: Say = print) -> dict[str, Any]:
    """Runs and scores the cases that are not done, and returns the means over all that are, and each of them.

    A case that cannot be run (a portrait with nothing to repaint) is a failure with its reason. Scores that
    lack a figure were made before there was one: their case is judged again, and not edited again.
    """
    if missing := [name for name in ("skin", "hair", "hat", "cloth") if name not in labels.names]:
        raise UserError(f"the fixed cases repaint portraits of people; this network has no {missing[0]}")
    _check_folder(run)
    judges = EditJudges.load(run.device)
    for number, case in enumerate(cases):
        folder = run.outdir / case.name
        if _scored(folder) and not run.rescore:
            continue
        say(f"{number + 1} of {len(cases)}: {case.name} (seed {case.seed}), {case.prompt}")
        write_json(folder / _SCORES, rounded(_one(run, case, folder, judges)))
    done = {case.name: run.outdir / case.name for case in FIXED_CASES}
    done = {name: folder for name, folder in done.items() if _scored(folder)}
    results = {name: read_json(folder / _SCORES) for name, folder in done.items()}
    whole = [folder for name, folder in done.items() if "edit" in results[name]]
    if whole:
        write_png(run.outdir / "sheet.png", contact_sheet(whole, labels))
    return summary(results)


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means by source over the cases that ran; in 'edit' a failed case has no success either."""
    ran = [result for result in results.values() if "edit" in result]
    failed = len(results) - len(ran)
    found: dict[str, Any] = {}
    for source in ("edit", "unedited", "other"):
        if ran:
            found[source] = {"cases": len(ran), **means([result[source] for result in ran])}
    if ran and failed:
        found["edit"]["success"] *= len(ran) / len(results)
        found["edit"]["failed"] = failed
    return {"mean": found, "cases": results}


def _scored(folder: Path) -> bool:
    """Whether a case is done, with all figures of today's scores."""
    if not (folder / _SCORES).exists():
        return False
    scores = read_json(folder / _SCORES)
    return "edit" not in scores or {field.name for field in fields(EditScore)} <= set(scores["edit"])


def _one(run: EditRun, case: Case, folder: Path, judges: EditJudges) -> dict[str, Any]:
    about = {"case": case.name, "seed": case.seed, "prompt": case.prompt}
    if not (folder / REPORT).exists():  # with it, only the scores are missing
        try:
            run_case(case, run.network, run.prior, folder, run.settings, run.device)
        except Unpaintable as error:
            return {**about, "error": str(error)}
    return {**about, **score_folder(folder, judges, run.device)}


def _check_folder(run: EditRun) -> None:
    """One folder holds the edits of one network, prior and configuration."""
    wanted = {**decided_by(run.network, run.prior, run.settings), "first_seed": run.first_seed}
    path = run.outdir / _RUN
    if not path.exists():
        load_prior(run.prior)  # says what is wrong with it before anything is written
        write_json(path, wanted)
        return
    found = {"first_seed": FIRST_SEED, **read_json(path)}  # which older folders do not mention
    differs = [name for name in wanted if found.get(name) != wanted[name]]
    if differs:
        raise UserError(
            f"{run.outdir} holds edits with another {differs[0].removesuffix('_sha256').replace('_', ' ')}: "
            "give another --outdir"
        )
