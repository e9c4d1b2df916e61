"""Files of the Hugging Face Hub: fetched once, resumed where a download was cut off, verified, kept.

The Hub says the digest and the size of a file before it sends it. A download goes to ``NAME.partial`` and
becomes NAME when both fit. ``NAME.partial`` outlives an interruption and is continued by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.files import make_folder, stream_digest, write_json

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_ATTEMPTS = 5  # connections that may break off


@dataclass(frozen=True)
class HubName:
    """A file of a repository on the Hub, as ``owner/repository/path/of/file``."""

    repository: str  # owner/repository
    path: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"


def hub_name(text: str) -> HubName | None:
    """``text`` as a name on the Hub, or None where it cannot be one."""
    parts = text.split("/")
    if len(parts) < 3 or any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts):
        return None
    if parts[0].startswith("~"):
        return None
    return HubName("/".join(parts[:2]), "/".join(parts[2:]))


def hub_leads_nowhere() -> bool:
    """Whether the Hub's address is unknown here, as without a network: found at once, where the Hub's own
    client tries again for half a minute. Who has a proxy asks that for addresses."""
    if urllib.request.getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def cache_folder() -> Path:
    """Where fetched files are kept: ``MATE3D_CACHE``, else ``~/.cache/mate3d``."""
    return Path(os.environ.get("MATE3D_CACHE") or Path.home() / ".cache" / "mate3d")


def cached_path(name: HubName) -> Path:
    """Where the file is, or will be. A file that the user puts there by hand is taken as it is."""
    return cache_folder() / name.repository / name.path


def fetch(name: HubName, *, endpoint: str | None = None) -> Path:
    """The file on this disk, downloaded unless it is there. Anything in the way is a UserError."""
    path = cached_path(name)
    if path.is_file():
        return path
    url = hf_hub_url(name.repository, name.path, endpoint=endpoint)
    by_hand = f"fetch {url} with any program and save it as {path}, or give the path of your copy"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} is not on this disk and HF_HUB_OFFLINE forbids to fetch it: {by_hand}")
    file = _describe(name, url, by_hand)
    make_folder(path.parent)
    with FileLock(f"{path}.lock"):  # another process may be fetching it
        if not path.is_file():
            _download(file, path, by_hand)
    return path


@dataclass(frozen=True)
class _RemoteFile:
    url: str  # where the bytes are, after redirection
    digest: str  # SHA-256 of a large file, git's SHA-1 of a small one
    size: int
    headers: dict[str, str]


def _describe(name: HubName, url: str, by_hand: str) -> _RemoteFile:
    """What the Hub says of the file."""
    try:
        facts = get_hf_file_metadata(url, timeout=_TIMEOUT)
    except (RepositoryNotFoundError, EntryNotFoundError, GatedRepoError) as error:
        why = {
            GatedRepoError: "asks for an agreement: log in with `hf auth login` after giving it on its page"
        }
        reason = why.get(type(error), "has no such file, or is private")
        raise UserError(f"{name}: the repository {reason} ({url})") from error
    except Exception as error:  # the client's own exceptions differ between its versions
        reason = _reason(error)
        raise UserError(
            f"{name} is not on this disk and the Hub cannot be reached ({reason}): {by_hand}"
        ) from error
    if not facts.etag or facts.size is None:
        raise UserError(f"{name}: the Hub does not say its digest, so it cannot be verified: {by_hand}")
    # a token is for the Hub, not for the storage that it redirects to
    same = urlsplit(facts.location).netloc == urlsplit(url).netloc
    return _RemoteFile(facts.location, facts.etag, facts.size, build_hf_headers() if same else {})


def _download(file: _RemoteFile, path: Path, by_hand: str) -> None:
    partial, state = path.with_name(path.name + ".partial"), path.with_name(path.name + ".partial.json")
    if _digest_of(state) != file.digest:  # of another version, or nothing yet
        partial.unlink(missing_ok=True)
        write_json(state, {"digest": file.digest})
    partial.touch()
    problem = "it ended early"
    with tqdm(total=file.size, desc=path.name, unit="B", unit_scale=True) as bar:
        for _ in range(_ATTEMPTS):
            try:
                _continue(file, partial, bar)
            except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
                problem = _reason(error)
            if partial.stat().st_size >= file.size:
                break
    if partial.stat().st_size < file.size:
        have = f"{partial.stat().st_size:,} of {file.size:,} bytes of {path.name} are here"
        raise UserError(f"{have} and the rest did not come ({problem}); run it again to go on, or {by_hand}")
    if _digest(partial, file) != file.digest:
        partial.unlink()
        raise UserError(
            f"{path.name} arrived damaged (its digest differs from the Hub's): run it again, or {by_hand}"
        )
    os.replace(partial, path)
    state.unlink(missing_ok=True)


def _continue(file: _RemoteFile, partial: Path, bar: tqdm) -> None:
    """Appends what is missing; starts anew where the server cannot begin in the middle."""
    have = partial.stat().st_size
    headers = {**file.headers, **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=_TIMEOUT) as reply:
        going_on = reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if going_on else 0
        bar.n = have
        bar.refresh()
        with open(partial, "ab" if going_on else "wb") as out:
            while have <= file.size and (block := reply.read(_BLOCK)):
                out.write(block)
                have += len(block)
                bar.update(len(block))


def _digest(path: Path, file: _RemoteFile) -> str:
    """Of the kind that the Hub gave."""
    if len(file.digest) == 64:
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(f"blob {file.size}\0".encode())
    return stream_digest(path, state)


def _digest_of(state: Path) -> str | None:
    """The digest that an interrupted download was to have."""
    try:
        return json.loads(state.read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0]:.120}" if text else type(error).__name__
