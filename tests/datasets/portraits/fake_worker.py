"""Worker processes that draw nothing, in a module of its own, which starts quickly: one dies at picture 1,
one always."""

import os

from datasets.portraits.run import Settings, attributes_path
from dnnlib.files import write_json


def work(pipe, settings: Settings, outdir) -> None:
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        if index == 1:
            os._exit(11)
        write_json(attributes_path(outdir, index), {"camera": [0.0] * 25, "caption": "a man"})
        pipe.send(None)


def never(pipe, settings: Settings, outdir) -> None:
    os._exit(7)
