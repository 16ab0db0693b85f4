"""The Hugging Face Hub: the two files of a model from a repository, and to one.

`owner/name` → a folder in the local cache with `model.safetensors` and `config.json`, and nothing else of the
repository; a folder → one commit. Whatever goes wrong ends in one `WeightsError`. `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_HOME` and the token of `hf auth login` count as everywhere.
"""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, errors, snapshot_download

from hwm.errors import WeightsError
from hwm.weights.ours import CONFIG_NAME, TENSORS_NAME

FILES = (TENSORS_NAME, CONFIG_NAME)
CARD_NAME = "README.md"
# `HTTPError` is the HTTP client's own, whichever that is; the others are what the client library raises on purpose.
HUB_ERRORS = (
    errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    errors.EntryNotFoundError,
    OSError,
    ValueError,
    RuntimeError,
)


class HubAccess(NamedTuple):
    """How to reach the Hub.

    Attributes:
        token: an access token; None takes that of `hf auth login`, if there is one.
        endpoint: address of another Hub; None is huggingface.co or `HF_ENDPOINT`.
    """

    token: str | None = None
    endpoint: str | None = None


def is_repo_id(text: str) -> bool:
    """Whether a text has the form `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def download(
    repo_id: str,
    revision: str | None,
    access: HubAccess,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder with the two files of a repository, downloaded if the cache does not have them.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; None is the main branch.
        access: see `HubAccess`.
        cache_dir: where downloads are kept; None is the Hub's own cache.
        local_files_only: take what is in the cache and do not connect.

    Raises:
        WeightsError: no connection, no such repository, revision or file, or no access.
    """
    try:
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(FILES),
                local_files_only=local_files_only,
                token=access.token,
                endpoint=access.endpoint,
                library_name="hwm",
            )
        )
    except HUB_ERRORS as error:
        what = f"{repo_id} at revision {revision}" if revision else repo_id
        raise _refused(f"{what}: there is no such folder here, and it did not come from the Hub", error) from error
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{repo_id} on the Hub is no model of ours", expected=" and ".join(FILES), found=f"no {missing[0]}",
            fix="check the name and the revision",
        )  # fmt: skip
    return folder


def upload(
    folder: Path, repo_id: str, branch: str | None, private: bool, commit_message: str, access: HubAccess
) -> str:
    """Put the files of a folder (the model's two and its card) into a repository, in one commit.

    Args:
        folder: holds the files.
        repo_id: `owner/name`; made if there is none.
        branch: where to; made if there is none. None is the main branch.
        private: whether nobody else may see the repository.
        commit_message: first line of the commit.
        access: see `HubAccess`.

    Returns:
        Address of the commit.

    Raises:
        WeightsError: no connection, no right to write, or a public repository where a private one was asked for.
    """
    if not is_repo_id(repo_id):
        raise WeightsError("this is no repository of the Hub", expected="owner/name", found=repr(repo_id))
    api = HfApi(endpoint=access.endpoint, token=access.token, library_name="hwm")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise WeightsError(
                f"{repo_id} is public already", expected="a private repository", found="one that everybody can read",
                fix="make it private on the Hub first, or take another name",
            )  # fmt: skip
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        operations = [CommitOperationAdd(name, folder / name) for name in (*FILES, CARD_NAME)]
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=branch)
    except HUB_ERRORS as error:
        raise _refused(f"{repo_id} was not written", error) from error
    return commit.commit_url


def _refused(problem: str, error: BaseException) -> WeightsError:
    """What happened, without the client's pages of advice, and what to do."""
    fixes: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "ask for access on the repository's page, then log in: hf auth login"),
        (errors.RepositoryNotFoundError, "check the name; for a private repository log in: hf auth login"),
        (errors.RevisionNotFoundError, "check the revision: a branch, a tag or a commit"),
        (errors.LocalEntryNotFoundError, "check the connection (and HF_HUB_OFFLINE), or name a local folder"),
    )
    fix = next((text for kind, text in fixes if isinstance(error, kind)), "check the connection and try again")
    lines = [line for line in str(error).splitlines() if line.strip()]
    found = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return WeightsError(problem, found=found, fix=fix)
