"""The ten cases: what their repaintings do to a drawn head."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.labels import label_set
from training.editing import cases

LABELS = label_set("ffhq-mask")


@pytest.fixture
def head() -> np.ndarray:
    """Hair round a face above neck and shoulders, 64 x 64."""
    y, x = np.mgrid[:64, :64]
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[(np.hypot((x - 32) / 22, (y - 28) / 22) < 1)] = LABELS.index("hair")
    mask[(y > 46) & (np.abs(x - 32) < 7)] = LABELS.index("neck")
    mask[(y > 54)] = LABELS.index("cloth")
    mask[(np.hypot((x - 32) / 13, (y - 34) / 17) < 1)] = LABELS.index("skin")
    return mask


def share(mask: np.ndarray, name: str) -> float:
    return float((mask == LABELS.index(name)).mean())


def test_hat_covers_the_top_and_leaves_the_lower_face(head):
    painted = cases.hat(head, LABELS)
    assert 0.05 < share(painted, "hat") < 0.4
    assert (painted[32:] == head[32:]).all()
    assert not (painted[:20] == LABELS.index("hair")).any()


@pytest.mark.parametrize("repaint", [cases.long_hair, cases.big_hair])
def test_growing_hair_takes_background_but_no_face(head, repaint):
    painted = repaint(head, LABELS)
    assert share(painted, "hair") > 1.15 * share(head, "hair")
    assert share(painted, "skin") == share(head, "skin")


def test_short_hair_is_less_hair_and_the_rest_is_background(head):
    painted = cases.short_hair(head, LABELS)
    changed = painted != head
    assert 0 < share(painted, "hair") < 0.8 * share(head, "hair")
    assert (painted[changed] == 0).all()


def test_cases_have_names_of_their_own_and_name_classes_where_the_mask_does_not_change(head):
    assert len({case.name for case in cases.CASES}) == len(cases.CASES) == 10
    for case in cases.CASES:
        unchanged = (case.repaint(head, LABELS) == head).all()
        assert bool(case.classes) == bool(unchanged), case.name
        assert all(name in LABELS.names for name in case.classes)
