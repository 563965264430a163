"""Downloads model files from the Hugging Face Hub, only when asked to: nothing else in this package opens a connection.

Progress is the Hub client's own (tqdm); an interrupted download resumes where it stopped. ``offline``, or the variable
``HF_HUB_OFFLINE=1``, takes what was downloaded before. Works with huggingface_hub 0.3x, 1.x and 2.x.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from ..errors import CheckpointError, LTX2Error, OutputError
from .artifacts import Role, Selection, select

__all__ = [
    "GEMMA_REPOSITORY",
    "REPOSITORIES",
    "HubClient",
    "download_files",
    "download_gemma",
    "download_set",
    "remote_sizes",
]

logger = logging.getLogger("ltx2.loading")

SETTING = "repository"
REPOSITORIES: Mapping[str, str] = {"2.3": "Lightricks/LTX-2.3", "2.0": "Lightricks/LTX-2"}
GEMMA_REPOSITORY = "google/gemma-3-12b-it-qat-q4_0-unquantized"
_GEMMA_FILES = ("*.safetensors", "*.json", "tokenizer.model")
# Packages whose exceptions mean that the network failed, not the request; the Hub client decides which of them is used.
_NETWORK_PACKAGES = frozenset({"requests", "urllib3", "httpx", "httpx2", "httpcore", "socket", "ssl"})


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
    names = _list_files(repository, folder, revision, offline or _offline_by_environment(), client)
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
    paths = {}
    for name in names:
        logger.info("%s %s from %s", "looking for" if offline else "downloading", name, repository)
        with _explained(repository, name, folder):
            found = hub.hf_hub_download(repository, name, revision=revision, local_dir=folder, local_files_only=offline)
        paths[name] = Path(found)
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
    with _explained(repository, None, folder):
        found = _hub(client).snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            local_files_only=offline or _offline_by_environment(),
            allow_patterns=list(_GEMMA_FILES),
        )
    return Path(found)


def remote_sizes(
    repository: str, names: Collection[str], *, revision: str | None = None, client: HubClient | None = None
) -> dict[str, int]:
    """Bytes of single files as the Hub states them, by name. Nothing is downloaded.

    Arguments and errors as :func:`download_set`.
    """
    with _explained(repository, None, None):
        info = _hub(client).model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in names:
        if sizes.get(name) is None:
            fix = "It may have moved: look at the repository's page, and put the file in place yourself."
            raise CheckpointError(SETTING, repository, f"has no file {name}", fix)
    return {name: int(sizes[name]) for name in names}


def _list_files(
    repository: str, folder: Path | None, revision: str | None, offline: bool, client: HubClient | None
) -> list[str]:
    hub = _hub(client)
    with _explained(repository, None, folder):
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
def _explained(repository: str, name: str | None, folder: Path | None) -> Iterator[None]:
    """Turns the Hub client's exceptions into errors that say what to do."""
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
