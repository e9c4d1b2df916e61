"""The benchmark's command and its table, in a tiny run."""

from __future__ import annotations

import itertools
import json

import pytest
import yaml
from click.testing import CliRunner

import benchmark
from tests.tiny_run import TINY_RUN
from torch_utils.device import reset_peak_memory
from training.benchmark import measure, operations, work
from training.benchmark import run as run_module
from training.benchmark.measure import Row, Spread
from training.benchmark.run import HEADER, ROOT, Options, line, run


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY_RUN, "batch": 2}))
    return path


def test_rows_say_gain_and_share_of_the_bound():
    row = Row("a", "b", Spread(2.0, 1.0, 3.0), 4, Spread(6.0, 5.0, 7.0), 0.5, "memory", 123.4, 456.7)
    assert row.gain == 3 and row.fraction == 0.25
    assert line(row) == "| a | b | 2 | 1 - 3 | 0.5 | 25% memory | 123 | 6 | 5 - 7 | 457 | 3.00 |"
    plain = line(Row("a", "b", Spread(2.0, 1.0, 3.0)))
    assert plain == "| a | b | 2 | 1 - 3 | 2 |  |  |  |  |  |  |"
    assert all(each.count("|") == plain.count("|") for each in HEADER.splitlines())


@pytest.fixture
def in_this_process(monkeypatch):
    """Others would import all of the project anew."""
    monkeypatch.setattr(
        run_module, "in_own_process", lambda function, *arguments, threads: function(*arguments)
    )


def test_a_tiny_run(tiny, tmp_path, in_this_process):
    said = []
    options = Options(("views", "training"), tiny, (8,), 2, repetitions=1, threads=1, shrink=64)
    found, rows = run(options, said.append, tmp_path / "figures.json")
    assert [row.group for row in rows] == ["views"] + ["training"] * 3
    assert all(row.peak_mb > 10 and row.fraction > 0 for row in rows)
    assert len(said) == 3 + len(rows)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["product"] == found.product and len(figures["rows"]) == len(rows)


def test_rows_of_an_operation(tmp_path, monkeypatch, in_this_process):
    """Beside their reference, each with a spread, against a bound, with memory where the system tells it."""
    monkeypatch.setattr(operations, "available", lambda _: ["upfirdn2d"])
    peaks = itertools.cycle((100, 130))  # before a run, and behind it
    monkeypatch.setattr(measure, "peak_memory_mb", lambda _: next(peaks))
    options = Options(("operations",), repetitions=2, shrink=64)
    _, rows = run(options, lambda _: None, tmp_path / "figures.json")
    assert len(rows) == 4 * 3
    for row in json.loads((tmp_path / "figures.json").read_text())["rows"]:
        assert row["bound"] == "memory" and row["fraction"] > 0 and row["gain"] > 0
        for spread in (row["seconds"], row["reference"]):
            assert 0 < spread["lowest"] <= spread["median"] <= spread["highest"]
        if reset_peak_memory("cpu"):
            assert row["peak_mb"] == row["reference_peak_mb"] == 30


def test_settings_reach_training_and_edits(tiny, monkeypatch, in_this_process):
    """By their names; `seed` is one of both."""
    configs = []
    monkeypatch.setattr(work, "training_steps", lambda config, *_, **__: configs.append(config) or [])
    settings = ("checkpointing=true", "loss.gamma=3", "weights.clip=1", "seed=7")
    options = Options(("training",), tiny, settings=settings, repetitions=1, shrink=64)
    run(options, lambda _: None)
    (config,) = configs
    assert config.checkpointing and config.loss.gamma == 3 and config.seed == 7
    edit = options.edit_settings()
    assert edit.weights.clip == 1 and edit.seed == 7


@pytest.mark.parametrize(
    ("setting", "message"), [("chekpointing=false", "checkpointing"), ("weights.clp=1", "weights.clip")]
)
def test_settings_are_checked_before_anything_is_measured(setting, message, monkeypatch):
    monkeypatch.setattr(run_module, "machine", lambda *_, **__: pytest.fail("ran"))
    result = CliRunner().invoke(benchmark.main, ["--set", setting, "--device", "cpu"])
    assert result.exit_code == 2 and f"did you mean '{message}'" in result.output


def test_training_without_checkpointing(monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "run", lambda options, *_: asked.append(options))
    arguments = ["--cfg", "ffhq-mask", "--only", "training", "--batch", "1", "--device", "cpu"]
    for more in ([], ["--set", "checkpointing=false"]):
        result = CliRunner().invoke(benchmark.main, [*arguments, *more])
        assert result.exit_code == 0, result.output
    assert [options.train_config().checkpointing for options in asked] == [True, False]


def test_command_line(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "run", lambda options, _, path: asked.append((options, path)))
    path = tmp_path / "new" / "figures.json"
    arguments = ["--only", "views", "--raw", "64", "--raw", "128", "--cfg", "ffhq-mask", "--json", str(path)]
    result = CliRunner().invoke(benchmark.main, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    ((options, written),) = asked
    assert options.groups == ("views",) and options.raw_resolutions == (64, 128)
    assert options.config == ROOT / "configs" / "ffhq-mask.yaml" and written == path


def test_unknown_configuration(monkeypatch):
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("ran"))
    result = CliRunner().invoke(benchmark.main, ["--cfg", "nothing"])
    assert result.exit_code == 2 and "nothing.yaml is not there" in result.output
