"""The app's page, where gradio is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app import main
from datasets.labels import label_set
from training.editing.session import SourceOptions
from training.editing.studio import Studio

LABELS = label_set("ffhq-mask")
NETWORK = Path(__file__).resolve().parents[3] / "pretrained/portraits-64.safetensors"


def test_without_gradio_one_line_says_what_to_install(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "training.editing.studio_page", raising=False)
    result = CliRunner().invoke(main, ["--outdir", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install '.[app]'" in result.output


def test_page_opens_a_portrait_and_refuses_an_edit_without_words(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    from training.editing.studio_page import build

    said = []
    studio = Studio(SourceOptions(NETWORK, device="cpu"), "none", None, tmp_path, say=said.append)
    page = build(studio, LABELS)
    actions = {each.api_name: each.fn for each in page.fns.values()}
    sitting, portrait, painting = actions["sample"](5, 0.7, 0.0, 0.0)
    assert portrait.shape == (512, 512, 3)
    assert (painting["background"][::8, ::8] == LABELS.colourise(sitting.mask)).all()
    layers = {"layers": [np.zeros((512, 512, 4), dtype=np.uint8)]}
    for words, message in ((" ", "say what"), ("a red hat", "repaint")):
        with pytest.raises(gradio.Error, match=message):
            actions["edit"](sitting, layers, words, "a portrait", [], 10, 7.5)
    with pytest.raises(gradio.Error, match="show a portrait"):
        actions["edit"](None, layers, "a red hat", "a portrait", [], 10, 7.5)
    with pytest.raises(gradio.Error, match="choose a picture"):
        actions["invert"](None, None)
