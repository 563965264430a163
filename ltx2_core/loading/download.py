"""Downloads model files from the Hugging Face Hub, only when asked to: nothing else in this package opens a connection.

Branches and tags move: all files of a set are fetched at the one commit that they meant at the start. ``offline``, or
the variable ``HF_HUB_OFFLINE=1``, takes what was downloaded before. Works with huggingface_hub 0.25 to 2.x.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from ..errors import CheckpointError, LTX2Error, OutputError
from .artifacts import Role, Selection, select

__all__ = [
    "GEMMA_REPOSITORY",
    "REPOSITORIES",
    "HubClient",
    "download_files",
    "download_gemma",
    "download_set",
    "explained",
    "find_remote",
    "read_remote",
    "remote_files",
    "remote_sizes",
]

logger = logging.getLogger("ltx2.loading")

SETTING = "repository"
REPOSITORIES: Mapping[str, str] = {"2.3": "Lightricks/LTX-2.3", "2.0": "Lightricks/LTX-2"}
GEMMA_REPOSITORY = "google/gemma-3-12b-it-qat-q4_0-unquantized"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GEMMA_FILES = ("*.safetensors", "*.json", "tokenizer.model")
# Packages whose exceptions mean that the network failed, not the request; the Hub client decides which of them is used.
_NETWORK_PACKAGES = frozenset({"requests", "urllib3", "httpx", "httpx2", "httpcore", "socket", "ssl"})


class RemoteFile(NamedTuple):
    """What the Hub says of a file; ``sha256`` is None for a small one."""

    nbytes: int
    sha256: str | None
    commit: str


class RemoteBytes(NamedTuple):
    """Where a file's bytes are.

    Attributes:
        url: at the Hub.
        location: where that leads to.
        etag: names the bytes; of a large file it is the SHA-256.
    """

    url: str
    location: str
    commit: str
    etag: str
    nbytes: int


class HubClient(Protocol):
    """The functions of ``huggingface_hub`` that are used; the module itself is one."""

    def list_repo_files(self, repo_id: str, *, revision: str | None = None) -> Sequence[str]: ...

    def hf_hub_download(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None = None,
        local_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> str: ...

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        local_dir: Path | None = None,
        local_files_only: bool = False,
        allow_patterns: list[str] | None = None,
    ) -> str: ...

    def model_info(self, repo_id: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        """With ``siblings``, each of which has ``rfilename`` and ``size``."""
        ...


def download_set(
    repository: str,
    recipe: str,
    folder: Path | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    client: HubClient | None = None,
) -> tuple[Selection, dict[Role, Path]]:
    """Downloads the newest files of a repository that a recipe needs and that fit each other, without the text encoder.

    Args:
        repository: such as ``Lightricks/LTX-2.3``.
        folder: where the files go; None keeps them in the Hub's cache.
        revision: branch, tag or commit.

    Returns:
        What was picked and why, and where it is now.

    Raises:
        CheckpointError: the repository is gated, unknown or unreachable, or holds nothing for the recipe.
        OutputError: the disk is full or not writable.
    """
    offline = offline or _offline_by_environment()
    revision = _pinned(_hub(client), repository, revision, offline)
    names = _list_files(repository, folder, revision, offline, client)
    selection = select(names, recipe, SETTING, repository)
    wanted = {role: pick.name for role, pick in selection.picks.items() if role is not Role.GEMMA}
    paths = download_files(repository, wanted.values(), folder, revision=revision, offline=offline, client=client)
    return selection, {role: paths[name] for role, name in wanted.items()}


def download_files(
    repository: str,
    names: Iterable[str],
    folder: Path | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    client: HubClient | None = None,
) -> dict[str, Path]:
    """Downloads single files; what is there already is not loaded again.

    Arguments and errors as :func:`download_set`.
    """
    hub, offline = _hub(client), offline or _offline_by_environment()
    paths, begun = {}, time.time()
    for name in names:
        logger.info("%s %s from %s", "looking for" if offline else "downloading", name, repository)
        with explained(repository, name, folder):
            found = hub.hf_hub_download(repository, name, revision=revision, local_dir=folder, local_files_only=offline)
        paths[name] = Path(found)
        _check_sum(repository, name, paths[name], begun)
    return paths


def download_gemma(
    repository: str = GEMMA_REPOSITORY,
    folder: Path | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    client: HubClient | None = None,
) -> Path:
    """Downloads the text encoder with its tokenizer; returns the folder. Its licence has to be accepted first.

    Arguments and errors as :func:`download_set`.
    """
    hub, offline, begun = _hub(client), offline or _offline_by_environment(), time.time()
    revision = _pinned(hub, repository, revision, offline)
    with explained(repository, None, folder):
        found = hub.snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            local_files_only=offline,
            allow_patterns=list(_GEMMA_FILES),
        )
    for path in sorted(Path(found).glob("*.safetensors")):
        _check_sum(repository, path.name, path, begun)
    return Path(found)


def remote_sizes(
    repository: str, names: Collection[str], *, revision: str | None = None, client: HubClient | None = None
) -> dict[str, int]:
    """Bytes of single files as the Hub states them, by name. Nothing is downloaded.

    Arguments and errors as :func:`download_set`.
    """
    return {
        name: file.nbytes for name, file in remote_files(repository, names, revision=revision, client=client).items()
    }


def remote_files(
    repository: str, names: Collection[str], *, revision: str | None = None, client: HubClient | None = None
) -> dict[str, RemoteFile]:
    """Single files as the Hub states them, by name, all of one commit. Nothing is downloaded.

    Arguments and errors as :func:`download_set`.
    """
    with explained(repository, None, None):
        info = _hub(client).model_info(repository, revision=revision, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or ()}
    for name in names:
        if getattr(found.get(name), "size", None) is None:
            fix = "It may have moved: look at the repository's page, and put the file in place yourself."
            raise CheckpointError(SETTING, repository, f"has no file {name}", fix)
    commit = getattr(info, "sha", None) or revision or "main"
    return {name: RemoteFile(int(found[name].size), _stated_sum(found[name]), commit) for name in names}


def _stated_sum(file: Any) -> str | None:
    """Only large files have one; a dictionary in older clients."""
    lfs = getattr(file, "lfs", None)
    stated = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    return stated if isinstance(stated, str) else None


def find_remote(repository: str, path: str, revision: str) -> RemoteBytes:
    """Where a file's bytes are. To be called inside :func:`explained`.

    Raises:
        CheckpointError: it is not the Hub that answers.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    remote = get_hf_file_metadata(hf_hub_url(repository, path, revision=revision))
    if remote.commit_hash and remote.commit_hash != revision:
        remote = get_hf_file_metadata(hf_hub_url(repository, path, revision=remote.commit_hash))
    if remote.commit_hash is None or remote.etag is None or remote.size is None:
        problem = "is not answered by a Hugging Face Hub: the answer names no commit, sum or size"
        raise CheckpointError(
            SETTING, repository, problem, "Check HF_ENDPOINT, a proxy, or a page that asks to log in."
        )
    own = hf_hub_url(repository, path, revision=remote.commit_hash)
    return RemoteBytes(own, remote.location or own, remote.commit_hash, remote.etag, int(remote.size))


def read_remote(remote: RemoteBytes, target: Path) -> None:
    """Appends to a file what is missing of it. To be called inside :func:`explained`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not re-exported

    have = target.stat().st_size if target.exists() else 0
    # Else compressed on its way, a part could not be asked for
    headers = {"Accept-Encoding": "identity"}
    if urlsplit(remote.location).netloc == urlsplit(remote.url).netloc:  # nobody else gets the token
        headers |= build_hf_headers()
    with target.open("r+b" if have else "wb") as file:
        if have > remote.nbytes:
            file.truncate(0)
        begin = file.seek(0, os.SEEK_END)
        if begin < remote.nbytes:
            http_get(remote.location, file, resume_size=begin, headers=headers, expected_size=remote.nbytes)


def _pinned(hub: HubClient, repository: str, revision: str | None, offline: bool) -> str | None:
    """The commit that a revision means now."""
    ask = getattr(hub, "model_info", None)
    if offline or ask is None:
        return revision
    with explained(repository, None, None):
        commit = getattr(ask(repository, revision=revision), "sha", None)
    logger.info("%s is at revision %s", repository, commit)
    return commit if isinstance(commit, str) else revision


def _check_sum(repository: str, name: str, path: Path, begun: float) -> None:
    """Whether a file that was fetched now, into the Hub's cache, has the SHA-256 that is its name there.

    Raises:
        CheckpointError: it has not; it is removed.
    """
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name) or not blob.is_file() or blob.stat().st_mtime < begun:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while piece := file.read(2**24):
            digest.update(piece)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        problem = f"sent a damaged {name}: its SHA-256 is {digest.hexdigest()}, and should be {blob.name}"
        raise CheckpointError(SETTING, repository, problem, "It was removed. Try again later.")


def _list_files(
    repository: str, folder: Path | None, revision: str | None, offline: bool, client: HubClient | None
) -> list[str]:
    hub = _hub(client)
    with explained(repository, None, folder):
        if not offline:
            return list(hub.list_repo_files(repository, revision=revision))
        root = Path(hub.snapshot_download(repository, revision=revision, local_dir=folder, local_files_only=True))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _hub(client: HubClient | None) -> HubClient:
    if client is not None:
        return client
    import huggingface_hub

    return cast(HubClient, huggingface_hub)


def _offline_by_environment() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def explained(repository: str, name: str | None, folder: Path | None) -> Iterator[None]:
    """Turns the Hub client's exceptions into errors that say what to do.

    Args:
        name: of the file; None where all are meant.
        folder: that is written to.
    """
    try:
        yield
    except Exception as error:
        explained = _explain(error, repository, name, folder)
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, repository: str, name: str | None, folder: Path | None) -> LTX2Error | None:
    from huggingface_hub import errors

    def problem(text: str, fix: str) -> CheckpointError:
        return CheckpointError(SETTING, repository, text, fix)

    status = getattr(getattr(error, "response", None), "status_code", None)
    # The order matters: a gated repository's error is one of an unknown repository, too.
    if isinstance(error, errors.GatedRepoError) or status == 403:
        page = f"Open the page of {repository} on the Hugging Face website, accept its licence, then log in here"
        return problem("is gated, and this account has no access to it", f"{page} (hf auth login, or set HF_TOKEN).")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        text = "does not exist, or is private and nobody who may see it is logged in"
        return problem(text, f"Check the name (such as {REPOSITORIES['2.3']}), or log in (hf auth login).")
    if isinstance(error, errors.HFValidationError):
        return problem("is no repository's name", f"Write it as owner/name, such as {REPOSITORIES['2.3']}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return problem("has no such revision", "Leave the revision out, or use a branch, tag or commit that exists.")
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)) or _is_network(error, errors):
        what = f"{name} is" if name else "its files are"
        fix = "Check the connection (and HF_HUB_OFFLINE), or put the files in place yourself."
        return problem(f"cannot be reached, and {what} not among the files that were downloaded before", fix)
    if isinstance(error, errors.EntryNotFoundError):
        return problem(f"has no file {name}", "Check the name; the repository's page lists its files.")
    if status == 429:
        return problem("answered that there were too many requests (429)", "Wait some minutes, then start again.")
    if isinstance(error, errors.HfHubHTTPError):
        return problem(f"answered with an error ({status or error})", "Try again later.")
    if isinstance(error, OSError):
        return _explain_disk(error, folder)
    return None


def _is_network(error: BaseException, errors: Any) -> bool:
    if isinstance(error, errors.HfHubHTTPError):
        return False  # the server answered
    packages = {parent.__module__.split(".")[0] for parent in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(packages & _NETWORK_PACKAGES)


def _explain_disk(error: OSError, folder: Path | None) -> OutputError:
    place = folder or "the Hub's cache"
    if error.errno == errno.ENOSPC:
        fix = "Free some space and start again, the download resumes; or choose another folder."
        return OutputError("folder", place, "the disk is full", fix)
    reason = error.strerror or type(error).__name__
    return OutputError("folder", place, f"cannot be written ({reason})", "Choose a folder that you may write to.")
