"""The fixed list, and what its own repaintings do to a drawn head."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.labels import label_set
from datasets.portraits.captions import VOCABULARY, words
from dnnlib.errors import UserError
from training.editing.cases import CASES
from training.judges.attributes import claims
from training.metrics.edit_cases import FIXED_CASES, bald, glasses, sunglasses
from training.metrics.edit_runs import chosen_cases, summary

LABELS = label_set("ffhq-mask")


@pytest.fixture
def head() -> np.ndarray:
    """Hair round a face with eyes above neck and shoulders, 64 x 64."""
    y, x = np.mgrid[:64, :64]
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[np.hypot((x - 32) / 22, (y - 28) / 22) < 1] = LABELS.index("hair")
    mask[(y > 46) & (np.abs(x - 32) < 7)] = LABELS.index("neck")
    mask[y > 54] = LABELS.index("cloth")
    mask[np.hypot((x - 32) / 13, (y - 34) / 17) < 1] = LABELS.index("skin")
    mask[30:32, 25:28], mask[30:32, 37:40] = LABELS.index("left eye"), LABELS.index("right eye")
    return mask


def test_the_list_is_long_and_its_own() -> None:
    assert len(FIXED_CASES) >= 50
    assert len({case.name for case in FIXED_CASES}) == len({c.seed for c in FIXED_CASES}) == len(FIXED_CASES)
    assert not {case.seed for case in FIXED_CASES} & {case.seed for case in CASES}


def test_every_sentence_is_in_known_words_and_claims_something_that_can_be_read() -> None:
    for case in FIXED_CASES:
        assert set(words(case.prompt)) <= set(VOCABULARY), case.name
        assert claims(case.prompt), case.name
        assert "sex" not in claims(case.prompt), case.name  # an edit of a hat does not change the face


def test_every_case_changes_the_mask_or_names_its_classes(head: np.ndarray) -> None:
    for case in FIXED_CASES:
        unchanged = (case.repaint(head, LABELS) == head).all()
        assert bool(case.classes) == bool(unchanged), case.name


def test_glasses_cover_skin_round_the_eyes_and_not_the_eyes(head: np.ndarray) -> None:
    painted = glasses(head, LABELS)
    new = painted == LABELS.index("glasses")
    assert new[28, 24] and new[31, 32] and not new[31, 26]  # lens, bridge, eye
    assert 0.01 < new.mean() < 0.06
    assert (painted == head)[~new].all()
    blind = np.where(np.isin(head, [4, 5]), LABELS.index("skin"), head).astype(np.uint8)
    again = glasses(blind, LABELS) == LABELS.index("glasses")
    assert (again & new).sum() > 0.5 * new.sum()  # where the eyes should be


def test_sunglasses_cover_the_eyes_too(head: np.ndarray) -> None:
    painted, frame = sunglasses(head, LABELS), glasses(head, LABELS)
    eyes = np.isin(head, [LABELS.index("left eye"), LABELS.index("right eye")])
    assert eyes.any() and (painted[eyes] == LABELS.index("glasses")).all()
    assert (painted == frame)[~eyes].all()


def test_a_bald_head_has_skin_on_top_and_no_hair(head: np.ndarray) -> None:
    painted = bald(head, LABELS)
    assert not (painted == LABELS.index("hair")).any()
    assert (painted == LABELS.index("skin")).sum() > 1.1 * (head == LABELS.index("skin")).sum()
    assert (painted[51:] == head[51:]).all()


def test_no_face_is_said(head: np.ndarray) -> None:
    with pytest.raises(UserError, match="no face"):
        bald(np.zeros((8, 8), dtype=np.uint8), LABELS)


def test_choosing_cases() -> None:
    assert chosen_cases(None) == list(FIXED_CASES)
    assert chosen_cases("0-2, 7") == [FIXED_CASES[i] for i in (0, 1, 2, 7)]
    assert [case.name for case in chosen_cases("bald-1,hat-red")] == ["bald-1", "hat-red"]
    others = chosen_cases("0-1", first_seed=7)
    assert [(case.name, case.seed) for case in others] == [
        (c.name, 7 + i) for i, c in enumerate(FIXED_CASES[:2])
    ]
    for wrong in ("x", "3-1", "0-999", "-1"):
        with pytest.raises(UserError, match="--cases"):
            chosen_cases(wrong)


def test_a_case_that_could_not_run_is_no_success() -> None:
    score = {"success": True, "claims": {"hat": True, "hat colour": False}, "mask_iou": 0.5}
    ran = {"edit": {**score, "seconds": 9}, "unedited": score, "other": score}
    found = summary({"a": ran, "b": {"error": "no face"}})["mean"]
    assert found["edit"]["success"] == 0.5 and found["edit"]["failed"] == 1
    assert found["edit"]["claims"] == 0.5 and found["edit"]["mask_iou"] == 0.5
    assert found["unedited"]["success"] == 1 and found["unedited"]["cases"] == 1
