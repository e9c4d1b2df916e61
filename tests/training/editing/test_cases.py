"""The ten cases: what their repaintings do to a drawn head."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from datasets.labels import label_set
from training.editing import cases
from training.editing.settings import EditSettings

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


def extent(mask: np.ndarray) -> tuple[float, float, float]:
    """Of the hair: top above the face and end below the chin in heights of the face, width in its widths."""
    hair, face = mask == LABELS.index("hair"), mask == LABELS.index("skin")
    (rows, columns), (face_rows, face_columns) = (
        [np.nonzero(region.any(axis))[0] for axis in (1, 0)] for region in (hair, face)
    )
    height = np.ptp(face_rows) + 1
    width = (np.ptp(columns) + 1) / (np.ptp(face_columns) + 1)
    return (face_rows[0] - rows[0]) / height, (rows[-1] - face_rows[-1]) / height, width


@pytest.mark.parametrize(
    ("repaint", "style"), [(cases.long_hair, (0.29, 0.33, 2.37)), (cases.big_hair, (0.43, -0.33, 1.74))]
)
def test_grown_hair_is_as_large_as_the_portraits_of_its_name_and_leaves_the_face(head, repaint, style):
    painted = repaint(head, LABELS)
    assert share(painted, "skin") == share(head, "skin")
    top, end, width = extent(painted)
    # medians of 274 and 85 nearly frontal portraits of the 4,200, whose 10th and 90th percentiles are 0.1 to
    # 0.2 away; this head's hair is higher from the start
    assert top >= style[0] - 0.1
    assert end == pytest.approx(style[1], abs=0.1)
    assert width == pytest.approx(style[2], abs=0.25)


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


def test_results_of_other_options_are_not_taken_for_these(tmp_path):
    """Neither edited again nor counted: the folder says what it was begun with."""
    (tmp_path / "red-hat").mkdir()
    (tmp_path / "red-hat" / "score.json").write_text(
        '{"mask_iou": 1, "psnr_outside_region": 1, "seconds": 1}'
    )
    (tmp_path / "settings.json").write_text('{"settings": {"steps": 3}}')
    words = ["--outdir", str(tmp_path), "--only", "red-hat", "--device", "cpu"]
    result = CliRunner().invoke(cases.main, words)
    assert result.exit_code == 2 and "was begun with" in result.output


def test_how_an_edit_is_computed_does_not_decide_it(tmp_path) -> None:
    """A folder of edits goes on on another machine, and on a GPU that has no room for recorded steps."""
    network = tmp_path / "network.safetensors"
    network.write_bytes(b"")
    plain = cases.decided_by(network, "owner/name", EditSettings())
    assert cases.decided_by(network, "owner/name", EditSettings(bfloat16=False, cuda_graphs=False)) == plain
    assert cases.decided_by(network, "owner/name", EditSettings(steps=3)) != plain
    assert "bfloat16" not in plain["settings"]  # of folders that are older than these
