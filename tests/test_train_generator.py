"""The command: what it prints, what it refuses, and a run from the command line to its end and on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from datasets.cameras import orbit_camera
from datasets.masked_images import MaskedImages
from tests.tiny_run import TINY_RUN
from train_generator import main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tiny_file(folder: Path) -> Path:
    """A configuration whose run takes seconds."""
    config = {**TINY_RUN, "kimg": 0.008}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four grey pictures with masks and cameras."""
    folder = tmp_path / "set"
    labels = []
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        name = f"{number}.png"
        Image.new("RGB", (16, 16), (60 * number, 100, 100)).save(folder / "images" / name)
        Image.new("L", (16, 16), number).save(folder / "masks" / name)
        labels.append([name, [float(x) for x in orbit_camera(0.1 * number, 0.0)]])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.mark.parametrize(
    ("name", "parameters"), [("ffhq-mask", "34."), ("catmask-hq", "34."), ("portraits-64", "1.")]
)
def test_dry_run_prints_the_configuration_and_its_cost(name: str, parameters: str):
    result = call("--cfg", name, "--dry-run", "--batch", 12, "--set", "loss.eikonal=0.3")
    assert result.exit_code == 0, result.output
    assert "batch: 12" in result.output
    assert "eikonal: 0.3" in result.output
    assert any(
        line.split()[:1] == ["generator"] and parameters in line for line in result.output.splitlines()
    )
    assert "GFLOP" in result.output


def test_without_data_one_line_says_what_is_expected():
    result = call("--cfg", "ffhq-mask")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    for word in ("--data", "512x512", "dataset.json", "--masks", "--cfg portraits-64"):
        assert word in result.output


def test_the_command_that_it_suggests_works(root: Path, monkeypatch: pytest.MonkeyPatch):
    suggested = shlex.split(call("--cfg", "ffhq-mask").output.rpartition(": ")[2])
    assert suggested[:2] == ["python", "train_generator.py"]
    monkeypatch.chdir(root)
    result = call(*suggested[2:], "--dry-run")
    assert result.exit_code == 0, result.output
    config = yaml.safe_load(result.output.partition("\n\n")[0])
    assert (
        len(MaskedImages(config["data"]["images"], None, "ffhq-mask", config["generator"]["resolution"]))
        == 64
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cfg", "ffhq-maks"), "did you mean 'ffhq-mask'"),
        (("--cfg", "portraits-64", "--set", "loss.gama=1"), "did you mean 'loss.gamma'"),
        (("--cfg", "nowhere.yaml"), "nowhere.yaml"),
        ((), "give --cfg"),
        (("--resume", "nowhere"), "there is no such run"),
        (("--resume", __file__), "neither the folder of a run nor its state nor a generator"),
        (("--cfg", "portraits-64", "--kimg", "-1"), "Error: kimg=-1"),
        (("--cfg", "portraits-64", "--fresh-judges"), "needs --resume"),
    ],
)
def test_mistakes_end_in_one_line(arguments: tuple[str, ...], said: str):
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_run_goes_on_from_its_folder_alone(tmp_path: Path, pictures: Path):
    out = tmp_path / "out"
    result = call(
        "--cfg", tiny_file(tmp_path), "--data", pictures, "--outdir", out, "--aug", "ada", "--seed", 3
    )
    assert result.exit_code == 0, result.output
    assert "finished after 0.008 kimg" in result.output
    again = call("--cfg", tiny_file(tmp_path), "--data", pictures, "--outdir", out)
    assert again.exit_code == 2
    assert f"--resume {out}" in again.output
    config = (out / "config.yaml").read_text()
    less = call("--resume", out, "--kimg", 0.004)
    assert less.exit_code == 0 and "has had 0.008 of 0.004 kimg" in less.output
    assert (out / "config.yaml").read_text() == config
    more = call("--resume", out, "--kimg", 0.016)
    assert more.exit_code == 0, more.output
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if line["phase"] == "adversarial"] == [4, 8, 12, 16]
    # the saved configuration runs again
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["augment"]["mode"] == "ada"
    assert call("--cfg", out / "config.yaml", "--dry-run").exit_code == 0


def test_a_run_from_a_generator_has_a_folder_of_its_own(tmp_path: Path, pictures: Path, monkeypatch):
    first = tmp_path / "first"
    assert call("--cfg", tiny_file(tmp_path), "--data", pictures, "--outdir", first).exit_code == 0
    before = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    generator = first / "network-snapshot-000000.safetensors"
    monkeypatch.chdir(tmp_path)
    result = call("--cfg", tiny_file(tmp_path), "--data", pictures, "--resume", generator)
    assert result.exit_code == 0, result.output
    assert "results are in runs/tiny" in result.output
    result = call("--data", pictures, "--resume", generator)  # the configuration that lies beside it
    assert result.exit_code == 2 and "give its --outdir" in result.output
    result = call("--cfg", tiny_file(tmp_path), "--data", pictures, "--resume", generator, "--outdir", first)
    assert result.exit_code == 2 and "holds a run already" in result.output
    assert before == {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
