"""evaluate.py from command line to JSON, on a tiny random generator, a tiny prior and pictures of 16 x 16."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from datasets.labels import label_set
from datasets.portraits import BUNDLED, BUNDLED_VIEWS
from dnnlib import config as config_files
from evaluate import main
from tests.tiny_generator import TINY_GENERATOR
from tests.tiny_prior import write_tiny_models
from torch_utils.device import peak_memory_mb
from training import loop
from training.config import TrainConfig
from training.curves import read_curves
from training.editing.cases import Unpaintable
from training.editing.optimise import EditOptimiser, EditResult
from training.editing.settings import EditSettings
from training.generator import Generator
from training.metrics import edit_runs, evaluation
from training.metrics.edit_runs import EditRun, chosen_cases

FAST = (
    "region.voxels=16",
    "keep_points=64",
    "views=[[0.3, 0.0]]",
    "export.frames=2",
    "export.mesh_resolution=16",
)


def shrink(source: Path, target: Path) -> Path:
    """A portrait set at 16 x 16."""
    target.mkdir()
    shutil.copy(source / "dataset.json", target)
    for kind in ("images", "masks", "depth", "normals"):
        for path in sorted((source / kind).rglob("*.png")):
            small = Image.open(path)
            how = Image.Resampling.BOX if kind in ("images", "normals") else Image.Resampling.NEAREST
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            small.resize((16, 16), how).save(target / path.relative_to(source))
    return target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """network.safetensors and prior/ with random weights; set/ and views/ are the bundled ones, smaller."""
    folder = tmp_path_factory.mktemp("models")
    words = ("a", "bald", "hair", "normal", "map", "of", "person", "portrait", "red", "with")
    write_tiny_models(folder, words)
    shrink(BUNDLED, folder / "set")
    shrink(BUNDLED_VIEWS, folder / "views")
    return folder


def run(*options: object) -> Result:
    return CliRunner().invoke(main, [str(option) for option in options])


def scores(models: Path, verb: str, *options: object) -> dict:
    path = models / f"{verb}.json"
    fixed = (
        "--network",
        models / "network.safetensors",
        "--data",
        models / "set",
        "--json",
        path,
        "--device",
        "cpu",
    )
    result = run(verb, *fixed, *options)
    assert result.exit_code == 0, result.output
    assert f"written to {path}" in result.output
    return json.loads(path.read_text())


def test_quality_tells_true_data_from_all_generators(models: Path) -> None:
    found = scores(models, "quality", "--features", "clip")
    assert found["network"].endswith("network.safetensors") and found["versions"]["torch"]
    table = found["scores"]
    assert set(table) == {"network", "true", "untrained", "random", "noise"}
    assert table["network"]["features"] == "clip" and table["network"]["pictures"] == 32
    for name in ("network", "untrained", "random", "noise"):
        for measure in ("fid", "kid", "swd"):
            assert table["true"][measure] < 0.7 * table[name][measure], (name, measure)
        assert table["true"]["recall"] > table[name]["recall"], name  # 32 pictures are too few for precision
        assert table["true"]["mask_iou"] > table[name]["mask_iou"], name


@pytest.mark.cuda
def test_scores_are_those_of_the_cpu_on_a_gpu(models: Path) -> None:
    options = ("--features", "clip", "--no-references")
    cpu = scores(models, "quality", *options)["scores"]["network"]
    gpu = scores(models, "quality", *options, "--device", "cuda")["scores"]["network"]
    assert gpu["fid"] == pytest.approx(cpu["fid"], rel=0.02)  # TF32 and the order of sums
    assert gpu["mask_iou"] == pytest.approx(cpu["mask_iou"], abs=0.02)


def test_the_training_log_has_the_numbers_of_the_command(models: Path, tmp_path: Path) -> None:
    """One kimg-crossing of a tiny run; its snapshot is measured again by the command."""
    settings = {
        "generator": config_files.to_dict(TINY_GENERATOR),
        "discriminator": {"channel_base": 64, "channel_max": 8, "group_size": 2},
        "schedule": {"raw_resolution": 8, "raw_resolution_final": 8},
        "sphere": {"steps": 2, "batch": 2, "points": 16},
        "data": {"images": str(models / "set"), "workers": 0},
        "loss": {"density_regularisation_points": 16},
        "kimg": 0.008, "batch": 4, "metrics_kimg": 0.008, "image_kimg": 1.0,
    }  # fmt: skip
    loop.train(config_files.load(TrainConfig, settings), tmp_path)
    lines = [line for line in read_curves(tmp_path / "stats.jsonl") if "metrics/fid" in line]
    assert len(lines) == 1 and lines[0]["images"] == 8
    snapshot = next(tmp_path.glob("network-snapshot-*.safetensors"))
    found = scores(models, "quality", "--network", snapshot, "--no-references")["scores"]["network"]
    for name in ("fid", "kid", "swd", "precision", "recall", "mask_iou"):
        assert lines[0][f"metrics/{name}"] == pytest.approx(found[name], rel=1e-4, abs=1e-5), name


def test_geometry_tells_true_heads_from_all_others(models: Path) -> None:
    options = ("--views", models / "views", "--seeds", "0-1", "--inversions", "2", "--fit-steps", "2")
    table = scores(models, "geometry", *options)["scores"]
    assert set(table) == {"network", "unfitted", "true", "exchanged", "untrained", "random"}
    fitted, *controls = (table[name].pop("inversion") for name in ("network", "unfitted", "untrained"))
    assert 0 < fitted["depth"] != controls[0]["depth"] != controls[1]["depth"]
    assert not any("inversion" in column for column in table.values()) and table["network"]["eikonal"] > 0
    assert table["true"]["heads"] == 4
    assert table["true"]["depth_warp"] < 0.7 * table["exchanged"]["depth_warp"]
    assert table["true"]["mask_agreement"] > table["exchanged"]["mask_agreement"] + 0.1
    assert table["true"]["identity_all"] > table["exchanged"]["identity_all"]
    assert table["true"]["recognised"] > table["exchanged"]["recognised"] + 0.3
    assert table["untrained"]["heads"] == table["network"]["heads"] == 2


def test_edits_are_run_scored_and_kept(models: Path, tmp_path: Path, monkeypatch) -> None:
    """One that repaints nothing; random weights show no face, so one that repaints may fail and says so."""
    outdir = tmp_path / "edits"
    fixed = ("--prior", models / "prior", "--outdir", outdir, "--steps", "1")
    fixed += tuple(word for setting in FAST for word in ("--set", setting))
    before = torch.ones(600 << 20, dtype=torch.uint8)
    peak = peak_memory_mb("cpu")
    del before  # no part of the edits
    found = scores(models, "edits", *fixed, "--cases", "hair-red,bald-1")
    cases = found["scores"]["cases"]
    assert set(cases) == {"hair-red", "bald-1"}
    for case in cases.values():
        assert ("error" in case) or set(case) >= {"edit", "unedited", "other"}
        for source in set(case) & {"edit", "unedited", "other"}:
            assert 0 <= case[source]["mask_read"] <= 1
    done = [case for case in cases.values() if "edit" in case]
    assert done, cases
    mean = found["scores"]["mean"]
    assert mean["edit"]["cases"] == len(done) and mean["edit"]["seconds"] > 0
    assert sys.platform != "linux" or mean["edit"]["peak_memory_mb"] < peak - 300
    assert mean["unedited"]["psnr_outside"] == 99 and mean["unedited"]["identity"] == pytest.approx(
        1, abs=1e-5
    )
    assert mean["other"]["psnr_outside"] < 99
    assert 0 <= mean["true"]["success"] <= 1
    assert np.asarray(Image.open(outdir / "sheet.png")).ndim == 3
    stamp = (outdir / "hair-red" / "scores.json").stat().st_mtime_ns
    scores(models, "edits", *fixed, "--cases", "hair-red")
    assert (outdir / "hair-red" / "scores.json").stat().st_mtime_ns == stamp  # not run again
    older = json.loads((outdir / "hair-red" / "scores.json").read_text())
    wanted = older["edit"].pop("mask_read")
    (outdir / "hair-red" / "scores.json").write_text(json.dumps(older))
    stamp = (outdir / "hair-red" / "report.json").stat().st_mtime_ns
    again = scores(models, "edits", *fixed, "--cases", "hair-red")["scores"]["cases"]["hair-red"]
    assert again["edit"]["mask_read"] == pytest.approx(wanted, abs=1e-5)  # judged again, not edited again
    assert (outdir / "hair-red" / "report.json").stat().st_mtime_ns == stamp
    named = ("edits", "--network", models)  # the folder stands for the network in it
    other = run(*named, *fixed, "--steps", "2")
    assert other.exit_code == 2 and "another settings: give another --outdir" in other.output
    other = run(*named, *fixed, "--first-seed", "2000")
    assert other.exit_code == 2 and "another first seed: give another --outdir" in other.output
    copy = tmp_path / "copy" / "prior"  # of the same name, but not the same
    shutil.copytree(models / "prior", copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    other = run(*named, *fixed, "--prior", copy)
    assert other.exit_code == 2 and "another prior: give another --outdir" in other.output


def test_edits_that_cannot_begin_leave_nothing_behind(models: Path, tmp_path: Path) -> None:
    result = run(
        "edits", "--network", models, "--prior", "nosuch", "--cases", "0", "--outdir", tmp_path / "out"
    )
    assert result.exit_code == 2 and "there is no folder nosuch" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["edits", "prior"])
def test_portraits_without_captions_are_refused(models: Path, tmp_path: Path, verb: str) -> None:
    """Nothing can be read off them that was said; and not after minutes of editing."""
    silent = tmp_path / "silent"
    silent.mkdir()
    for kind in ("images", "masks"):
        (silent / kind).symlink_to(models / "set" / kind)
    index = json.loads((models / "set" / "dataset.json").read_text())
    (silent / "dataset.json").write_text(json.dumps({"labels": index["labels"]}))
    options = ("--data", silent, "--prior", models / "prior", "--device", "cpu")
    if verb == "edits":
        options += ("--network", models, "--outdir", tmp_path / "out", "--cases", "0")
    result = run(verb, *options)
    assert result.exit_code == 2 and "silent has no captions" in result.output
    assert not (tmp_path / "out").exists()


def test_views_that_are_single_portraits_are_refused(models: Path) -> None:
    result = run(
        "geometry",
        "--network",
        models,
        "--data",
        models / "set",
        "--views",
        models / "set",
        "--device",
        "cpu",
    )
    assert result.exit_code == 2 and "is a portrait and no view of a head" in result.output
    assert "heads from seven sides" not in result.output  # nothing was measured before


def test_a_share_that_is_too_small_is_said(models: Path) -> None:
    said: list[str] = []
    halves = evaluation.true_halves(models / "set", None, TINY_GENERATOR, 0.1, said.append)
    assert len(halves[0]) == 32 and "its last 64 pictures are used: 0.1 of its 64 is too few" in said[0]
    said.clear()
    evaluation.true_halves(models / "set", None, TINY_GENERATOR, 1.0, said.append)
    assert not said


@pytest.mark.parametrize("verb", ["geometry", "edits", "prior"])
def test_masks_may_be_elsewhere(models: Path, tmp_path: Path, verb: str) -> None:
    """They are looked for where --masks says."""
    options = ("--network", models) if verb != "prior" else ("--prior", models / "prior")
    options += ("--views", models / "views") if verb == "geometry" else ()
    result = run(verb, *options, "--data", models / "set", "--masks", tmp_path / "nosuch", "--device", "cpu")
    assert result.exit_code == 2 and "nosuch" in result.output and "No such option" not in result.output


def test_a_stopped_evaluation_makes_its_last_edit_again(models: Path, tmp_path: Path, monkeypatch) -> None:
    begun: list[EditOptimiser] = []

    def stopped(self: EditOptimiser, on_step: Callable) -> EditResult:
        begun.append(self)
        return replace(whole(self, on_step), interrupted=True)

    whole = EditOptimiser.run
    options = ("--network", models, "--prior", models / "prior", "--steps", "1", "--outdir", tmp_path / "out")
    options += tuple(word for setting in FAST for word in ("--set", setting))
    with monkeypatch.context() as patch:
        patch.setattr(EditOptimiser, "run", stopped)
        result = run("edits", *options, "--cases", "hair-red,shirt-red")
    assert result.exit_code == 1 and "Aborted" in result.output
    assert not list((tmp_path / "out").glob("*/scores.json")) and len(begun) == 1
    result = run("edits", *options, "--cases", "hair-red", "--data", models / "set")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "hair-red" / "report.json").read_text())["steps"] == 1


def test_edits_of_an_evaluation_run_on_its_device(models: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[str] = []

    def recorded(case, network, prior, outdir, settings, device) -> dict:
        seen.append(device)
        raise Unpaintable("none")

    monkeypatch.setattr(edit_runs, "run_case", recorded)
    monkeypatch.setattr(edit_runs.EditJudges, "load", classmethod(lambda cls, device: None))
    edit = EditRun(models / "network.safetensors", str(models / "prior"), tmp_path, EditSettings(), "meta")
    found = edit_runs.evaluate_edits(edit, chosen_cases("0"), label_set("ffhq-mask"), print)
    assert seen == ["meta"] and found["cases"]["hat-black"]["error"] == "none"


def test_a_generator_without_masks_cannot_be_scored(tmp_path: Path) -> None:
    Generator(replace(TINY_GENERATOR, labels="none")).save(tmp_path / "plain.safetensors")
    for verb in ("quality", "geometry", "edits"):
        result = run(verb, "--network", tmp_path / "plain.safetensors")
        assert result.exit_code == 2 and "it has no masks" in result.output


def test_the_list_of_edits() -> None:
    result = run("edits", "--list", "--cases", "0-4")
    assert result.exit_code == 0 and len(result.output.strip().splitlines()) == 5


def test_auto_features_say_which(capsys) -> None:
    said: list[str] = []
    networks = evaluation.judges("auto", "catmask-hq", say=said.append)
    assert networks.reader is None and any("mask: not scored" in line for line in said)
    assert networks.features.name in ("inception", "clip")
    assert networks.features.name == "inception" or any("bundled CLIP" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("quality", "--network", "absent.safetensors"), "there is no network"),
        (("quality", "--data", "absent"), "there is no folder"),
        (("geometry", "--seeds", "x"), "--seeds"),
        (("edits", "--cases", "x"), "--cases"),
        (("edits", "--set", "stps=1"), "steps"),
        (("quality", "--json", "README.md/scores.json"), "cannot make the folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options, message) -> None:
    result = run(*options)
    assert result.exit_code == 2 and message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_prior_is_told_by_what_its_samples_show(models: Path) -> None:
    """Random weights follow nothing; true pictures are read as they are captioned."""
    path = models / "prior.json"
    fixed = ("--prior", models / "prior", "--data", models / "set", "--count", "8", "--steps", "2")
    result = run("prior", *fixed, "--json", path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = json.loads(path.read_text())["scores"]
    assert set(table) == {"prior", "true", "exchanged"}
    assert table["true"]["claims"] > 0.8 > table["prior"]["claims"]
    assert table["true"]["mask_iou"] > 2 * table["prior"]["mask_iou"]  # pictures of 16 x 16 are hard to read
