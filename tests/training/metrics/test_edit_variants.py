"""Comparing variants of an edit: which there are, and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dnnlib import config as config_files
from dnnlib.errors import UserError
from training.editing.settings import EditSettings
from training.metrics.edit_variants import (
    SCORES,
    VARIANTS,
    chosen_variants,
    differences,
    markdown,
    standard_error,
)


def scores(**changes) -> dict:
    return {
        **{name: 0.5 for name in SCORES},
        "success": True,
        "claims": {"hat": True, "red": False},
        **changes,
    }


def test_every_variant_is_a_setting_of_its_own() -> None:
    settings = [config_files.load(EditSettings, {}, variant.overrides) for variant in VARIANTS]
    assert settings[0] == EditSettings()
    assert len({str(each) for each in settings}) == len(settings)


def test_variants_are_chosen_by_name() -> None:
    assert [v.name for v in chosen_variants("sds, cdgt")] == ["sds", "cdgt"]
    with pytest.raises(UserError, match="--variants: there is no 'dss'"):
        chosen_variants("dss")


def test_differences_are_taken_case_by_case() -> None:
    first = [scores(mask_iou=0.2), scores(mask_iou=0.8)]
    other = [scores(mask_iou=0.3), scores(mask_iou=0.9, claims={"hat": True, "red": True})]
    np.testing.assert_allclose(differences(first, other, "mask_iou"), [0.1, 0.1])
    np.testing.assert_allclose(differences(first, other, "claims"), [0.0, 0.5])


def test_standard_error_of_a_mean() -> None:
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # sd sqrt(2) over sqrt(2)
    assert math.isnan(standard_error(np.array([1.0])))


def test_the_table_has_differences_from_the_first_only() -> None:
    table = markdown({"cdgt": [scores()] * 2, "sds": [scores(success=False)] * 2}).splitlines()
    assert table[2].startswith("| cdgt | 1.000 |") and "±" not in table[2]
    assert "| 0.000 (-1.000 ± 0.000) |" in table[3]
