"""Ablations: which there are, that runs go on and finished ones stay, and the table."""

from __future__ import annotations

import pytest

from dnnlib import config as config_files
from dnnlib.errors import UserError
from training import ablations
from training.ablations import ABLATIONS, Ablation, chosen_ablations, markdown
from training.config import TrainConfig
from training.launch import CONFIGS


def test_every_ablation_is_a_configuration_of_its_own() -> None:
    source = CONFIGS / "portraits-64.yaml"
    configs = [config_files.load(TrainConfig, source, each.overrides) for each in ABLATIONS]
    assert configs[0] == config_files.load(TrainConfig, source, ())
    assert (
        len({str(config) for config in configs}) == len({each.folder for each in ABLATIONS}) == len(configs)
    )


def test_ablations_are_chosen_by_folder() -> None:
    assert [each.name for each in chosen_ablations("no-sphere-start,full")] == ["no sphere start", "full"]
    assert chosen_ablations(",".join(each.folder for each in ABLATIONS)) == list(ABLATIONS)
    with pytest.raises(UserError, match="there is no 'spheres'"):
        chosen_ablations("spheres")


def test_a_stopped_run_goes_on_and_a_finished_one_stays(tmp_path, monkeypatch) -> None:
    finishes = iter((False, True))
    runs = []
    monkeypatch.setattr(ablations.launch, "start", lambda run: runs.append(run) or next(finishes))
    folder = tmp_path / "full"
    for _ in range(3):
        ablations.train(Ablation("x", ("seed=7",)), "portraits-64", "pictures", folder, ("kimg=0.5",))
        folder.mkdir(exist_ok=True)
        (folder / "training-state-000000000100.safetensors").touch()
    assert [run.resume for run in runs] == [None, folder]  # the third time there is nothing left to do
    assert all(run.config.seed == 7 and run.config.kimg == 0.5 for run in runs)


def test_the_table_leaves_out_what_was_not_scored() -> None:
    table = markdown({"full": {"fid": 12.345678, "identity": None}}).splitlines()
    assert table[2].startswith("| full | 12.35 |  |")
