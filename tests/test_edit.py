"""edit.py from command line to files, on a tiny random generator and a tiny untrained prior."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner, Result
from PIL import Image

from datasets.labels import label_set, read_mask, write_mask
from edit import main
from tests.tiny_prior import write_tiny_models
from training.acceleration import Acceleration
from training.editing import session
from training.editing.export import load_edit
from training.editing.optimise import EditOptimiser, StepLosses
from training.generator import Generator
from training.pictures import look, to_uint8
from training.prior import load_prior

LABELS = label_set("ffhq-mask")
SMALL = (
    "region.voxels=16",
    "keep_points=64",
    "views=[[0.3, 0.0]]",
    "export.frames=4",
    "export.mesh_resolution=32",
)
FAST = ("--steps", "3", *(word for setting in SMALL for word in ("--set", setting)))
RESULTS = {
    *(f"{kind}{when}.png" for kind in ("", "mask_", "normals_") for when in ("before", "after")),
    *("views.png", "turntable.mp4", "mesh.ply", "mesh.glb", "report.json"),
    *("generator.safetensors", "generator.json", "latent.npz"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """network.safetensors and prior/: random weights, pictures of 16 x 16."""
    folder = tmp_path_factory.mktemp("models")
    words = ("a", "hat", "normal", "map", "of", "person", "portrait", "red", "wearing")
    write_tiny_models(folder, words)
    return folder


def run(models: Path, *options: object) -> Result:
    fixed = ("--network", models / "network.safetensors", "--prior", models / "prior", "--device", "cpu")
    return CliRunner().invoke(main, [str(option) for option in (*fixed, *options)])


def run_red_hat(models: Path, mask: Path, outdir: Path, *options: object) -> Result:
    """A few steps from the mask of the ``edited`` portrait."""
    words = ("--seed", 3, "--mask", mask, "--prompt", "a person wearing a red hat", "--outdir", outdir)
    return run(models, *words, *FAST, *options)


def repaint(path: Path, side: int | None = None) -> None:
    """A hat on top of the mask that is there; ``side`` also enlarges it."""
    mask = read_mask(path, LABELS).copy()
    mask[1:6, 4:12] = LABELS.index("hat")
    if side:
        mask = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    write_mask(path, mask, LABELS)


@pytest.fixture(scope="module")
def edited(models: Path) -> tuple[Path, Path, Result]:
    """Mask, folder and output of one finished edit."""
    mask, out = models / "m.png", models / "out"
    assert run(models, "--seed", 3, "--export-mask", mask).exit_code == 0
    repaint(mask)
    prompt = "a person wearing a red hat"
    return mask, out, run(models, "--seed", 3, "--mask", mask, "--prompt", prompt, "--outdir", out, *FAST)


def test_export_mask_says_the_next_step(models: Path) -> None:
    path = models / "exported.png"
    result = run(models, "--seed", 5, "--yaw", 0.2, "--trunc", 0.4, "--export-mask", path)
    assert result.exit_code == 0 and len(result.output.strip().splitlines()) == 1
    assert f"edit.py --seed 5 --trunc 0.4 --yaw 0.2 --network {models}" in result.output
    assert f" --mask {path} " in result.output
    assert read_mask(path, LABELS, size=16).max() < LABELS.count
    assert Image.open(models / "exported_portrait.png").size == (16, 16)


def test_an_edit_leaves_every_file(edited) -> None:
    _, out, result = edited
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == RESULTS - missing_meshes(result)
    for name in ("before", "after", "mask_before", "mask_after"):
        assert Image.open(out / f"{name}.png").size == (16, 16)
    assert imageio.get_reader(out / "turntable.mp4").count_frames() == 4
    if (out / "mesh.glb").exists():
        assert len(trimesh.load(out / "mesh.glb", force="mesh").faces) > 0


def missing_meshes(result: Result) -> set[str]:
    """Random weights need not have a surface; edit.py says so then."""
    return {"mesh.ply", "mesh.glb"} if "no mesh is written" in result.output else set()


def test_the_report_has_what_the_readme_promises(edited) -> None:
    _, out, result = edited
    report = json.loads((out / "report.json").read_text())
    assert report["classes"] == ["hat"] and report["steps"] == 3 and len(report["losses"]) == 3
    assert 0 <= report["mask_iou"] <= 1 and report["psnr_outside_region"] > 10
    assert report["peak_memory_mb"] > 0 and report["seconds"]["total"] > 0
    assert report["versions"]["torch"] == torch.__version__.split("+")[0] or "torch" in report["versions"]
    assert "--mask" in report["command"] or report["command"]
    assert report["settings"]["objective"] == "cdgt" and report["settings"]["region"]["voxels"] == 16
    assert "mask_iou" in result.output


def test_a_saved_edit_renders_the_same_picture(edited, models: Path) -> None:
    _, out, _ = edited
    portrait = load_edit(out)
    camera = torch.from_numpy(np.load(out / "latent.npz")["camera"])[None]
    with torch.no_grad():
        picture = to_uint8(look(portrait.scene(), camera).image[0])
    stored = np.asarray(Image.open(out / "after.png"))
    assert np.abs(picture.astype(int) - stored).max() <= 1
    Generator.load(out / "generator.safetensors")  # the learned half is a generator like any other


def test_an_edit_can_start_from_a_latent_and_from_an_edit(edited, models: Path, tmp_path: Path) -> None:
    _, out, _ = edited
    again = run(models, "--latent", out / "latent.npz", "--export-mask", tmp_path / "m.png")
    assert again.exit_code == 0 and "--latent" in again.output
    np.testing.assert_array_equal(
        read_mask(tmp_path / "m.png", LABELS), read_mask(out / "mask_before.png", LABELS)
    )


def test_another_edit_does_not_replace_the_results(edited, models: Path) -> None:
    mask, out, _ = edited
    before = (out / "report.json").read_bytes()
    result = run_red_hat(models, mask, out, "--steps", 1)
    assert result.exit_code == 0 and f"look at {out}-2/views.png" in result.output
    assert (out / "report.json").read_bytes() == before
    assert json.loads(Path(f"{out}-2/report.json").read_text())["steps"] == 1


def test_a_larger_mask_is_resized_with_a_note(edited, models: Path, tmp_path: Path) -> None:
    mask = tmp_path / "large.png"
    write_mask(mask, read_mask(edited[0], LABELS), LABELS)
    repaint(mask, side=64)
    prompt = ("--mask", mask, "--prompt", "a red hat", "--outdir", tmp_path / "out", "--objective", "sds")
    result = run(models, "--seed", 3, *prompt, *FAST, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "64x64: resized to 16x16" in result.output


def test_a_mask_that_moves_many_classes_is_questioned(
    edited, models: Path, tmp_path: Path, monkeypatch
) -> None:
    assert "another one's mask" not in edited[2].output  # a hat is one class
    monkeypatch.setattr(session, "_MANY_CLASSES", 0)
    result = run_red_hat(models, edited[0], tmp_path / "out", "--objective", "sds", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "moves 1 classes of this portrait: if it was painted on another one's mask" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--mask is missing"),
        (("--mask", "m.png"), "--prompt is missing"),
        (("--mask", "absent.png", "--prompt", "x"), "cannot read the mask"),
        (("--export-mask", "m.png", "--latent", "absent.npz"), "cannot read the latent"),
        (("--export-mask", "m.png", "--latent", "a.npz", "--seed", 0), "give one of them"),
        (("--export-mask", "m.png", "--device", "nowhere"), "try --device cpu"),
        (("--mask", "m.png", "--prompt", "x", "--set", "stps=3"), "steps"),
        (("--mask", "m.png", "--prompt", "x", "--set", "geometry_every=0"), "geometry_every is 0"),
        (("--mask", "m.png", "--prompt", "x", "--set", "export.frames=0"), "export.frames is 0"),
        (("--export-mask", "network.safetensors/m.png"), "network.safetensors is a file"),
        (("--mask", "m.png", "--prompt", "x", "--half"), "--half needs a CUDA device"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(models: Path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(models)
    result = run(models, *options)
    assert result.exit_code == 2
    assert message in result.output and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda m: m, (), "equals the portrait's own"),
        (lambda m: m[:, :12], (), "masks are square"),
        (lambda m: m * 0, (), "background all over"),
        (lambda m: m, ("--classes", "hatt"), "did you mean 'hat'"),
        (lambda m: m, ("--classes", "background"), "repaint"),
        (lambda m: m, ("--classes", "hat"), "no hat in the portrait"),
        (lambda m: m[::2, ::2], (), "smaller than the 16x16"),
    ],
)
def test_a_wrong_mask_is_explained(edited, models: Path, tmp_path: Path, change, options, message) -> None:
    mask = tmp_path / "m.png"
    write_mask(mask, change(read_mask(edited[1] / "mask_before.png", LABELS)), LABELS)
    result = run(models, "--seed", 3, "--mask", mask, "--prompt", "a red hat", "--outdir", tmp_path, *options)
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "report.json").exists()


def test_words_that_change_nothing_need_a_repainted_mask(edited, models: Path, tmp_path: Path) -> None:
    before = edited[1] / "mask_before.png"
    present = LABELS.names[int(read_mask(before, LABELS).max())]
    words = ("--prompt", " A  red Hat", "--source-prompt", "a red hat", "--outdir", tmp_path / "o", *FAST)
    result = run(models, "--seed", 3, "--mask", before, *words, "--classes", present)
    assert result.exit_code == 2 and "nothing to change" in result.output
    assert run(models, "--seed", 3, "--mask", edited[0], *words, "--steps", 1).exit_code == 0


def test_painting_that_is_in_no_named_class_is_named(edited, models: Path, tmp_path: Path) -> None:
    mask = read_mask(edited[0], LABELS).copy()  # with the hat
    mask[9:13, 9:13] = LABELS.index("necklace")
    write_mask(tmp_path / "m.png", mask, LABELS)
    for classes, said in (("hat", True), ("hat,necklace", False)):
        options = ("--classes", classes, "--objective", "sds", "--steps", 1)
        result = run_red_hat(models, tmp_path / "m.png", tmp_path / "o", *options)
        assert result.exit_code == 0, result.output
        assert ("also repaints necklace, which --classes does not name" in result.output) == said


def test_black_and_white_is_no_mask(edited, models: Path, tmp_path: Path) -> None:
    Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / "m.png")
    result = run_red_hat(models, tmp_path / "m.png", tmp_path / "o")
    assert result.exit_code == 2 and "is black and white" in result.output, result.output


def test_an_export_that_is_stopped_keeps_the_edit(edited, models: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "o"
    with monkeypatch.context() as patch:
        patch.setattr(session, "write_video", stop)
        assert run_red_hat(models, edited[0], out, "--objective", "sds", "--steps", 1).exit_code != 0
    kept = json.loads((out / "report.json").read_text())
    assert kept["steps"] == 1 and set(kept) == set(json.loads((edited[1] / "report.json").read_text()))
    (out / "report.json").unlink()  # as if it was stopped a little earlier
    learned = (out / "generator.safetensors").read_bytes()
    result = run_red_hat(models, edited[0], out, "--objective", "sds", "--steps", 1)
    assert result.exit_code == 0 and f"look at {out}-2/views.png" in result.output
    assert (out / "generator.safetensors").read_bytes() == learned


def test_an_edit_of_what_an_edit_learned_is_warned_of(edited, tmp_path: Path) -> None:
    options = ("--network", edited[1], "--latent", edited[1] / "latent.npz", "--device", "cpu")
    with pytest.warns(UserWarning, match=f"edit.py --network .*network.safetensors --latent {edited[1]}"):
        words = [str(word) for word in (*options, "--export-mask", tmp_path / "m.png")]
        assert CliRunner().invoke(main, words).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--export-mask", ""), "is to be a picture"),
        (("--export-mask", "."), "is a directory"),
        (("--export-mask", "m.jpg"), "end its name in .png"),
        (("--mask", "m.png", "--prompt", "red", "--outdir", ""), "'--outdir': it is empty"),
    ],
)
def test_places_where_nothing_can_go_are_refused(
    models: Path, tmp_path: Path, monkeypatch, options, message
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(models, *options)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not list(tmp_path.iterdir())


def test_an_unpainted_mask_with_named_classes_edits_their_look(edited, models: Path, tmp_path: Path) -> None:
    before = edited[1] / "mask_before.png"
    present = LABELS.names[int(read_mask(before, LABELS).max())]
    options = ("--mask", before, "--prompt", "red", "--outdir", tmp_path, "--classes", present)
    result = run(models, "--seed", 3, *options, *FAST)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "report.json").read_text())["classes"] == [present]


def test_a_compiled_edit_is_the_same(edited, models: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("edit.Acceleration", partial(Acceleration, backend="eager"))  # traced alone
    mask, out, _ = edited
    prompt = ("--prompt", "a person wearing a red hat", "--outdir", tmp_path)
    made = []
    monkeypatch.setattr(
        session, "EditOptimiser", lambda *given: made.append(EditOptimiser(*given)) or made[-1]
    )
    result = run(models, "--seed", 3, "--mask", mask, *prompt, *FAST, "--compile")
    assert result.exit_code == 0, result.output
    assert made[0].settings.cuda_graphs is False  # nobody has tried to record what is compiled
    losses = [json.loads((folder / "report.json").read_text())["losses"] for folder in (out, tmp_path)]
    for plain, compiled in zip(*losses, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-5)
    assert load_edit(tmp_path).region.share == load_edit(out).region.share


@pytest.mark.parametrize(("wanted", "dtype"), [("true", torch.bfloat16), ("false", torch.float32)])
def test_predictions_are_as_quick_as_this_cpu_makes_them(
    edited, models: Path, tmp_path: Path, monkeypatch, wanted: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    seen = []

    def loaded(*arguments, **options):
        seen.append(load_prior(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(session, "load_prior", loaded)
    options = ("--prompt", "red", "--outdir", tmp_path, "--set", f"bfloat16={wanted}")
    result = run(models, "--seed", 3, "--mask", edited[0], *options, *FAST, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert seen[0].dtype == dtype


def test_an_edit_of_another_network_is_not_opened(edited, models: Path, tmp_path: Path) -> None:
    from dnnlib.errors import UserError

    generator = Generator.load(models / "network.safetensors")
    generator.mapping.w_avg.add_(1)
    generator.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="SHA-256"):
        load_edit(edited[1], network=tmp_path / "other.safetensors")


def test_a_painted_mask_is_not_overwritten(models: Path, tmp_path: Path) -> None:
    mask = tmp_path / "m.png"
    for _ in range(2):  # the same one again is no loss
        assert run(models, "--seed", 5, "--export-mask", mask).exit_code == 0
    repaint(mask)
    painted = mask.read_bytes()
    result = run(models, "--seed", 5, "--export-mask", mask)
    assert result.exit_code == 2 and "painted perhaps" in result.output
    assert mask.read_bytes() == painted


@pytest.mark.parametrize(
    "options",
    [
        ("--yaw", 30),
        ("--pitch", "nan"),
        ("--trunc", "inf"),
        ("--seed", 2**32),
        ("--seed-noise", 10**20),
        ("--guidance", "nan"),
        ("--device", "cpu:7"),
        ("--set", "lr=nan"),
        ("--prompt", "xyzzy"),
        ("--prompt", "  "),
    ],
)
def test_numbers_that_nothing_can_be_made_of_are_refused(
    edited, models: Path, tmp_path: Path, options
) -> None:
    mask, *_ = edited
    result = run_red_hat(models, mask, tmp_path / "o", *options)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "o").exists()


def test_sigterm_keeps_what_there_is(edited, models: Path, tmp_path: Path, monkeypatch) -> None:
    mask, *_ = edited
    step = EditOptimiser.step

    def step_and_terminate(self: EditOptimiser, index: int) -> StepLosses:
        losses = step(self, index)
        os.kill(os.getpid(), signal.SIGTERM)
        return losses

    monkeypatch.setattr(EditOptimiser, "step", step_and_terminate)
    result = run_red_hat(models, mask, tmp_path / "o")
    assert result.exit_code == 0 and "stopped after" in result.output, result.output
    assert {path.name for path in (tmp_path / "o").iterdir()} >= RESULTS - {"mesh.ply", "mesh.glb"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
