"""`python -m datasets.portraits.contact_sheet DIR SHEET.png`: many pictures of a set on one page."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from datasets.labels import label_set, read_mask
from dnnlib.errors import UserError, user_errors
from dnnlib.files import read_json
from dnnlib.options import PictureFile


def contact_sheet(folder: Path, names: list[str], columns: int, kind: str) -> Image.Image:
    """Pictures `names` (as in dataset.json) of one kind, in rows of `columns`; masks in their palette."""
    labels = label_set("ffhq-mask")
    tiles = []
    for name in names:
        path = folder / kind / name
        if not path.is_file():
            raise UserError(f"there is no {path}, which dataset.json lists: a set may have no {kind}")
        if kind == "masks":
            tiles.append(labels.colourise(read_mask(path, labels)))
        else:
            tiles.append(np.asarray(Image.open(path).convert("RGB")))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=PictureFile((".png", ".jpg", ".webp")))
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, help="Number of pictures."
)
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="Skip so many.")
@click.option(
    "--columns", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures in a row."
)
@click.option(
    "--kind", type=click.Choice(["images", "masks", "normals"]), default="images", show_default=True
)
@click.option("--zoom", type=click.IntRange(1, 8), default=1, show_default=True, help="Enlarge the pixels.")
@user_errors
def main(folder: Path, output: Path, count: int, start: int, columns: int, kind: str, zoom: int) -> None:
    """Put pictures of the set in FOLDER on one page, OUTPUT."""
    description = read_json(folder / "dataset.json")
    try:
        names = [name for name, _ in description["labels"]][start : start + count]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'dataset.json'} lists no pictures: is it a portrait set's?") from error
    if not names:
        raise UserError(f"{folder} has no complete picture from number {start} on")
    sheet = contact_sheet(folder, names, columns, kind)
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(output)
    click.echo(f"{len(names)} {kind} in {output}")


if __name__ == "__main__":
    main()
