"""Downloads from a server on this machine that behaves as the Hub does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dnnlib import download
from dnnlib.download import HubName, cached_path, fetch, hub_name
from dnnlib.errors import UserError

NAME = HubName("Ellis/MaTe3D", "faces/model.pkl")
CONTENT = bytes(range(256)) * 1000


class Hub(ThreadingHTTPServer):
    """Serves one file; what it does wrong is set by the tests."""

    content = CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    breaks_after: int | None = None  # bytes of an answer
    ranges = True
    asked: list[tuple[str, str]]  # method and Range header of each request


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        hub = self.server
        hub.asked.append((method, self.headers.get("Range", "")))
        if not self.path.startswith(f"/{NAME.repository}/resolve/main/{NAME.path}"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "")
        start = (
            int(wanted.removeprefix("bytes=").rstrip("-")) if method == "GET" and wanted and hub.ranges else 0
        )
        body = hub.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Linked-Size", str(len(hub.content)))
        self.send_header("ETag", f'"{hub.digest}"')
        self.send_header("X-Linked-ETag", f'"{hub.digest}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if method == "GET":
            self.wfile.write(body[: hub.breaks_after])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("MATE3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    server = Hub(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(hub: Hub, name: HubName = NAME) -> Path:
    return fetch(name, endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_a_file_is_fetched_once_and_kept(hub: Hub, tmp_path: Path) -> None:
    path = get(hub)
    assert path == tmp_path / "cache" / "Ellis" / "MaTe3D" / "faces" / "model.pkl" == cached_path(NAME)
    assert path.read_bytes() == CONTENT
    asked = len(hub.asked)
    assert get(hub) == path and len(hub.asked) == asked  # without a word to the Hub
    assert not list(path.parent.glob("*.partial*"))


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(hub: Hub, ranges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.breaks_after, hub.ranges = 100_000, ranges
    monkeypatch.setattr(download, "_ATTEMPTS", 1)  # one connection of this run breaks off
    with pytest.raises(UserError, match=r"100,000 of 256,000 bytes of model.pkl are here") as error:
        get(hub)
    assert "run it again to go on" in str(error.value) and "\n" not in str(error.value)
    hub.breaks_after = None
    assert get(hub).read_bytes() == CONTENT
    assert hub.asked[-1] == ("GET", "bytes=100000-")


def test_broken_connections_are_tried_again_within_a_run(hub: Hub) -> None:
    hub.breaks_after = 60_000
    assert get(hub).read_bytes() == CONTENT
    gets = [wanted for method, wanted in hub.asked if method == "GET"]
    assert gets == ["", *(f"bytes={n}-" for n in (60_000, 120_000, 180_000, 240_000))]


def test_the_rest_of_another_version_is_not_appended(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.breaks_after = 100_000
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    with pytest.raises(UserError):
        get(hub)
    hub.breaks_after, hub.content = None, CONTENT[::-1]
    hub.digest = hashlib.sha256(hub.content).hexdigest()
    assert get(hub).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("digest", [hashlib.sha256(b"other").hexdigest(), hashlib.sha1(b"other").hexdigest()])
def test_a_damaged_file_is_not_kept(hub: Hub, digest: str) -> None:
    hub.digest = digest
    with pytest.raises(UserError, match="arrived damaged"):
        get(hub)
    assert not cached_path(NAME).exists() and not list(cached_path(NAME).parent.glob("*.partial"))


def test_small_files_have_the_digest_of_git(hub: Hub) -> None:
    hub.content = b"{}"
    hub.digest = hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert get(hub).read_bytes() == b"{}"


def test_offline_says_what_to_fetch_and_where_to_put_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        fetch(NAME)
    line = str(error.value)
    assert "https://huggingface.co/Ellis/MaTe3D/resolve/main/faces/model.pkl" in line
    assert str(cached_path(NAME)) in line and "\n" not in line
    cached_path(NAME).parent.mkdir(parents=True)
    cached_path(NAME).write_bytes(b"by hand")
    assert fetch(NAME).read_bytes() == b"by hand"


def test_no_connection_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATE3D_CACHE", str(tmp_path))
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="cannot be reached .* save it as") as error:
        fetch(NAME, endpoint="http://127.0.0.1:9")  # nobody listens there
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(UserError, match="no such file"):
        get(hub, HubName("Ellis/MaTe3D", "dogs.pkl"))


@pytest.mark.parametrize(
    "text", ["a/b", "a//c", "../b/c", "a/../c", "/a/b/c", "~a/b/c", "C:/b/c", "a\\b/c/d"]
)
def test_what_is_no_name(text: str) -> None:
    assert hub_name(text) is None


def test_names() -> None:
    assert hub_name("Ellis/MaTe3D/faces/model.pkl") == NAME and str(NAME) == "Ellis/MaTe3D/faces/model.pkl"


def test_no_way_leads_to_a_hub_of_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(download.urllib.request, "getproxies", dict)
    monkeypatch.setattr(download.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert not download.hub_leads_nowhere()  # a number needs no name
    monkeypatch.setattr(download.socket, "getaddrinfo", unknown)
    assert download.hub_leads_nowhere()
    monkeypatch.setattr(download.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert not download.hub_leads_nowhere()
