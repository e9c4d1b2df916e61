"""The page of ``app.py``: a portrait, its mask to paint on, a sentence, and the edit in 3D. Needs gradio."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from datasets.labels import LabelSet
from dnnlib.errors import UserError
from training.editing.settings import EditSettings
from training.editing.studio import CANVAS, Sitting, Studio, canvas, hex_colour, legend, repainted
from training.pictures import tile

_BRUSH = 32  # pixels of the canvas
_EDITOR = 620  # pixels of the page: the canvas and its tools
_FIRST = "hat"  # what the brush paints before another colour is chosen, where there are hats


def build(studio: Studio, labels: LabelSet) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="MaTe3D", analytics_enabled=False) as page:
        sitting = gr.State(None)
        gr.Markdown("## Edit a 3D portrait with a mask and a sentence")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Sample a portrait"):
                    seed = gr.Number(5, label="Seed", precision=0, minimum=0)
                    truncation = gr.Slider(0, 1, 0.7, label="Truncation")
                    yaw = gr.Slider(-0.6, 0.6, 0, label="Yaw of the mask's camera (radians)")
                    pitch = gr.Slider(-0.3, 0.3, 0, label="Pitch (radians)")
                    sample = gr.Button("Show", variant="primary")
                with gr.Tab("A picture of your own"):
                    picture = gr.Image(type="filepath", label="Square, framed like the sampled ones")
                    given = gr.Image(type="filepath", image_mode=None, label="Its mask, if you have one")
                    invert = gr.Button("Make a scene of it", variant="primary")
                portrait = gr.Image(label="Portrait", interactive=False, buttons=["fullscreen"])
            with gr.Column():
                editor = gr.ImageEditor(
                    label="Its mask: paint what should be there",
                    type="numpy",
                    sources=(),
                    transforms=(),
                    layers=False,
                    height=_EDITOR,
                    brush=_brush(labels),
                )
                gr.HTML(legend(labels))
                prompt = gr.Textbox(label="What it should become", placeholder="a person wearing a red hat")
                before = gr.Textbox("a portrait of a person", label="What it shows now")
                with gr.Accordion("More", open=False):
                    classes = gr.Dropdown(
                        list(labels.names[1:]),
                        multiselect=True,
                        label="Classes to edit where the mask stays as it is, for a new colour",
                    )
                    steps = gr.Slider(10, 400, EditSettings.steps, step=10, label="Steps")
                    guidance = gr.Slider(1, 20, EditSettings.guidance, label="Guidance")
                edit = gr.Button("Edit", variant="primary")
        scores = gr.Markdown()
        with gr.Row():
            after = gr.Image(label="After", interactive=False)
            turntable = gr.Video(label="Before and after", autoplay=True, loop=True)
            mesh = gr.Model3D(label="Mesh")
        views = gr.Image(label="Before and after from seven sides", interactive=False)
        files = gr.Files(label="Files")

        shown = [sitting, portrait, editor]
        of_seed = _told(_opener(studio.open_seed)), [seed, truncation, yaw, pitch], shown
        sample.click(*of_seed, api_name="sample")
        invert.click(_told(_opener(_from_picture(studio))), [picture, given], shown, api_name="invert")
        edit.click(
            _told(_editor(studio)),
            [sitting, editor, prompt, before, classes, steps, guidance],
            [scores, after, turntable, mesh, views, files],
            api_name="edit",
        )
        page.load(*of_seed, api_name=False)
    return page


def _brush(labels: LabelSet) -> gr.Brush:
    colours = [hex_colour(colour) for colour in labels.palette]
    first = colours[labels.index(_FIRST)] if _FIRST in labels.names else colours[1]
    return gr.Brush(_BRUSH, colours, default_color=first, color_mode="fixed")


def _told(action: Callable) -> Callable:
    """A user's mistake as a message on the page instead of a traceback in the terminal."""

    @wraps(action)
    def run(*arguments):
        try:
            return action(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return run


def _opener(open_portrait: Callable[..., Sitting]) -> Callable:
    def opened(*arguments, progress=gr.Progress(track_tqdm=True)):  # noqa: B008 - gradio looks for it there
        sitting = open_portrait(*arguments)
        painted = canvas(sitting.mask, sitting.labels)
        return (
            sitting,
            tile(sitting.portrait, CANVAS),
            {"background": painted, "layers": [], "composite": painted},
        )

    return opened


def _from_picture(studio: Studio) -> Callable[[str | None, str | None], Sitting]:
    def opened(picture: str | None, mask: str | None) -> Sitting:
        if picture is None:
            raise UserError("choose a picture first")
        return studio.open_picture(Path(picture), None if mask is None else Path(mask))

    return opened


def _editor(studio: Studio) -> Callable:
    def edited(
        sitting: Sitting | None,
        painting: dict,
        prompt: str,
        before: str,
        classes: list[str],
        steps: float,
        guidance: float,
        progress=gr.Progress(track_tqdm=True),  # noqa: B008
    ):
        if sitting is None:
            raise UserError("show a portrait first")
        if not prompt.strip():
            raise UserError("say what the portrait should become")
        layers = [np.asarray(layer) for layer in painting["layers"]]
        mask = repainted(sitting.mask, layers, sitting.labels)
        settings = EditSettings(steps=int(steps), guidance=guidance)
        result = studio.edit(sitting, mask, prompt, before, classes or (), settings)
        report, folder = result.report, result.folder
        mesh = folder / "mesh.glb"
        said = (
            f"**{', '.join(report.classes)}**: mask IoU {report.mask_iou:.2f}, outside the edit "
            f"{report.psnr_outside_region:.1f} dB, {report.seconds['total']:.0f} s; in `{folder}`"
        )
        after = tile(np.asarray(Image.open(folder / "after.png")), CANVAS)
        shown = folder / "turntable.mp4", mesh if mesh.exists() else None, folder / "views.png"
        files = sorted(str(path) for path in folder.iterdir() if path.is_file())
        return said, after, *(None if path is None else str(path) for path in shown), files

    return edited
