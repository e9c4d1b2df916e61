"""Edit portraits in a browser: `python app.py`, then paint on the mask. Needs `pip install '.[app]'`."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.errors import UserError, user_errors
from dnnlib.options import OutFolder
from torch_utils.device import choose_device
from training.editing.session import SourceOptions, open_source
from training.editing.studio import Studio
from training.network_source import BUNDLED_PRIOR, network_option


@click.command(context_settings={"show_default": True})
@click.option("--outdir", type=OutFolder(), default=Path("out/app"), help="Folder for the results.")
@network_option
@click.option("--prior", help="Diffusion prior: a diffusers folder or a Hub name.", show_default="bundled")
@click.option("--controlnet", help="ControlNet trained on masks, when the prior's folder has none.")
@click.option("--device", help="cpu, cuda, cuda:1 ...", show_default="cuda where there is one")
@click.option("--host", default="127.0.0.1", help="Address to serve at; 0.0.0.0: to the whole network.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860)
@user_errors
def main(
    outdir: Path,
    network: Path,
    prior: str | None,
    controlnet: str | None,
    device: str | None,
    host: str,
    port: int,
) -> None:
    """Serve a page on which portraits are sampled or opened, repainted and edited."""
    try:
        from training.editing.studio_page import build
    except ImportError as error:
        raise UserError(f"the page needs gradio ({error}): pip install '.[app]'") from error
    source = SourceOptions(network, device=choose_device(device))
    labels = open_source(source).labels
    prior = prior or str(BUNDLED_PRIOR)
    studio = Studio(source, prior, controlnet, outdir, say=click.echo)
    page = build(studio, labels)
    try:
        page.launch(server_name=host, server_port=port, allowed_paths=[str(outdir)], quiet=True, share=False)
    except OSError as error:
        raise UserError(f"cannot serve at {host}:{port} ({error}): give another --port") from error


if __name__ == "__main__":
    main()
