"""The benchmark: a tiny run of all groups, and what is made of its figures."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner

import benchmark
from dnnlib import config as config_files
from tests.tiny_run import TINY_RUN
from torch_utils import extension
from training.benchmark import measure, operations, work
from training.benchmark import run as run_module
from training.benchmark.measure import Row, Spread, flops, in_own_process, machine, repeat
from training.benchmark.run import ROOT, Options, line, run
from training.config import TrainConfig


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY_RUN, "batch": 2}))
    return path


def test_spread_takes_the_median():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_rows_say_gain_and_share_of_the_bound():
    row = Row("a", "b", Spread(2.0, 1.0, 3.0), 4, Spread(6.0, 6.0, 6.0), 0.5, "memory", 123.4)
    assert row.gain == 3 and row.fraction == 0.25
    assert line(row) == "| a | b | 2 | 1 - 3 | 0.5 | 25% memory | 6 | 3.00 | 123 |"
    assert line(Row("a", "b", Spread(2.0, 1.0, 3.0))) == "| a | b | 2 | 1 - 3 | 2 |  |  |  |  |"


def test_repeat_leaves_out_the_first_run():
    calls = []
    spread = repeat(lambda: calls.append(1), 3, "cpu")
    assert len(calls) == 4 and 0 <= spread.lowest <= spread.median <= spread.highest


@pytest.mark.parametrize(
    ("of_one", "runs"), [(0.0001, 50), (0.003, 7), (0.02, 1), (5.0, 1)]
)  # seconds; runs that make 20 ms, at most 50
def test_runs_on_a_gpu_share_a_wait(monkeypatch, of_one, runs):
    """A GPU in miniature: work is put in a queue, and done while the CPU waits, which takes 0.1 ms."""
    clock, queue, waits = [0.0], [], []

    def wait(device):
        assert device == "cuda:1"
        waits.append(len(queue))
        clock[0] += sum(queue) + (0.0001 if queue else 0)
        queue.clear()

    monkeypatch.setattr(measure, "_wait", wait)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    spread = repeat(lambda: queue.append(of_one), 3, "cuda:1")
    # before and behind the warm-up, the run that tells how many there are to be, and three repetitions
    assert waits[1::2] == [1, 1, *[runs] * 3] and not any(waits[::2])
    assert spread.lowest == pytest.approx(of_one + 0.0001 / runs) == spread.highest


def test_flops_are_those_of_the_references(monkeypatch):
    seen = []
    assert flops(lambda: (seen.append(dict(extension.AUTO)), torch.ones(2, 3) @ torch.ones(3, 5))) == 2 * 30
    assert seen == [{}] and extension.AUTO


def test_the_machine_is_measured():
    found = machine("cpu", 1, shrink=32)
    assert found.product > 0 and found.convolution > 0 and found.memory > 0 and found.threads >= 1


@pytest.mark.parametrize("number", range(len(operations.cases(64))))
def test_every_operation_can_be_measured(number, monkeypatch):
    # where nothing native is built, 'native' runs the reference: enough to test the cases
    monkeypatch.setattr(extension, "loaded", lambda _: frozenset())
    case = operations.cases(64)[number]
    rows = list(operations.measure(case, 1, "cpu", 1e9))
    assert [row.name.rpartition(": ")[2] for row in rows][:2] == ["forward", "with backward"]
    assert all(row.reference and row.gain > 0 for row in rows)


def test_every_native_operation_has_a_case():
    assert {case.operation for case in operations.cases(64)} == extension.NATIVE.keys()


@pytest.mark.timeout(300)  # it imports torch anew
def test_a_process_of_its_own():
    numbers = in_own_process(_yield_and_fail, threads=1)
    assert next(numbers) != os.getpid()  # what came before is not lost
    with pytest.raises(ZeroDivisionError):
        next(numbers)
    with pytest.raises(RuntimeError, match="exit code 3"):
        list(in_own_process(_die, threads=1))


def _yield_and_fail():
    yield os.getpid()
    yield 1 // 0


def _die():
    yield os._exit(3)


def test_a_tiny_run(tiny, tmp_path, monkeypatch):
    said = []
    # processes would import all of the project anew
    monkeypatch.setattr(
        run_module, "in_own_process", lambda function, *arguments, threads: function(*arguments)
    )
    options = Options(("views", "training"), tiny, (8,), 2, repetitions=1, threads=1, shrink=64)
    found, rows = run(options, said.append, tmp_path / "figures.json")
    assert [row.group for row in rows] == ["views"] + ["training"] * 3
    assert all(row.peak_mb > 10 and row.fraction > 0 for row in rows)
    assert len(said) == 2 + len(rows)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["product"] == found.product and len(figures["rows"]) == len(rows)


def test_a_recipe_that_keeps_reconstructions_and_parses_masks_can_be_measured(tiny):
    options = ["warm_start.keep=1", "loss.mask_parsing=1", "parser.widths=[8,16]"]
    steps = list(work.training_steps(config_files.load(TrainConfig, tiny, options), "cpu", batch=2))
    assert [each.name.split(",")[0] for each in steps][-1] == "parser step"
    for each in steps:
        each.run()


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
