"""README and docs/ are true: links lead somewhere, commands exist with those options, Python blocks run."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from datasets.cameras import orbit_camera
from datasets.labels import label_set, write_mask
from dnnlib.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]
# pages whose Python blocks run without trained models
RUNNABLE = ("conventions.md", "data.md", "published-weights.md")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for match in re.finditer(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        yield match[1], match[2]


def anchors(page: Path) -> set[str]:
    """The anchors that a viewer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `python ...` in the pages, lines joined at backslashes."""
    found = []
    for page in PAGES:
        for _, text in blocks(page):
            for line in text.replace("\\\n", " ").splitlines():
                found += [(page_id(page), part) for part in re.findall(r"\bpython3? (?:-m )?[\w./].*", line)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if re.match(r"\w+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong, f"{page_id(page)} links to what is not there: {', '.join(wrong)}"


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_exist_with_their_options(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    name = words[1] if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
    parts = [ROOT.joinpath(*name.split(".")), ROOT.joinpath(*name.split("."), "__main__.py")]
    ours = parts[0].with_suffix(".py").is_file() or parts[1].is_file()
    if not ours:
        assert words[0] == "-m", f"{page}: there is no {words[0]}"
        return  # a module of another package, as `python -m venv`
    used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"-m", "--help"}
    verb = (words[2:] if words[0] == "-m" else words[1:])[:1]
    known = options_of(name, *verb, has_main=parts[1].is_file())
    assert used <= known, f"{page}: `{line}` uses {sorted(used - known)}"


def options_of(name: str, verb: str = "", *, has_main: bool) -> set[str]:
    """The options that the command in the module ``name`` takes, or the one called ``verb`` of a group."""
    module = importlib.import_module(f"{name}.__main__" if has_main else name)
    command = next((value for value in vars(module).values() if isinstance(value, click.Command)), None)
    if command is not None:
        command = command.commands[verb] if isinstance(command, click.Group) else command
        return {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    run = [sys.executable, "-m", name, "--help"]  # argparse says it on request only
    text = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout
    return set(re.findall(r"--?[a-z][\w-]*", text))


@pytest.mark.parametrize("name", RUNNABLE)
def test_python_blocks_run(name: str, tmp_path, monkeypatch) -> None:
    """In a folder with a small set called my-set, as the pages assume."""
    monkeypatch.chdir(tmp_path)
    labels = label_set("ffhq-mask")
    entries = []
    for i in range(8):
        file = f"img{i}.png"
        (tmp_path / "my-set" / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (512, 512)).save(tmp_path / "my-set" / "images" / file)
        write_mask(tmp_path / "my-set" / "masks" / file, np.full((512, 512), i), labels)
        entries.append([file, orbit_camera(0.1 * i, 0.0, labels.pivot).tolist()])
    write_json(tmp_path / "my-set" / "dataset.json", {"labels": entries})
    for language, text in blocks(ROOT / "docs" / name):
        if language == "python":
            exec(compile(text, name, "exec"), {"__name__": "docs"})


def test_readme_names_the_commands_that_ci_runs() -> None:
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md yet")
    text = readme.read_text(encoding="utf-8")
    for command in (
        r"pip install (-e )?'?\.\[test\]'?",
        r"pytest tests",
        r"pip install \.",
        r"python edit\.py ",
    ):
        assert re.search(command, text), f"README.md does not show {command}"


def test_label_table_is_the_label_set() -> None:
    text = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    cells = re.findall(r"\b(\d+) \| ([a-z ]+?) \| (\d+), (\d+), (\d+)", text)
    labels = label_set("ffhq-mask")
    table = {int(i): (name, (int(r), int(g), int(b))) for i, name, r, g, b in cells}
    assert table == {i: (labels.names[i], labels.palette[i]) for i in range(labels.count)}
