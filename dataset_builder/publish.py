"""Publishes data sets and models to the Hub.

Data sets have one configuration for each task and one card for all. Shards go first, in as many commits as it takes;
whoever reads meanwhile goes by the old card, whose patterns only the old files fit. One last commit then brings the
manifests, the card that is made of them, and takes old shards away. It is refused if anyone else has committed since
the card was made, and made anew. So a push can be interrupted at any moment, and pushes of several people do not
disturb each other. A model goes in one commit.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from huggingface_hub.errors import HfHubHTTPError

from .cards import REPLAY, REPORT, TEXT_EVALUATION, TRAINING, dataset_card, write_model_card
from .pictures import ASSETS, draw_returns
from .report import EVALUATION
from .shards import MANIFEST, find_shards, find_tasks, lock_folder, read_manifest

# What of a model's folder is published: weights, configurations, code, and what was measured.
MODEL_FILES = """
    *.safetensors *.safetensors.index.json *config.json tokenizer* merges.txt vocab.json *_jat.py
""".split()
MODEL_FILES += ["README.md", f"{EVAL_RESULTS_FOLDER}/*", EVALUATION, TEXT_EVALUATION, TRAINING, REPLAY, f"{REPORT}/*"]

MAX_ATTEMPTS = 8
LONGEST_WAIT = 30.0  # seconds
# Conflict, a branch that has moved, too many requests, and what a server says when it is not well.
_PASSING_STATUS = (408, 409, 412, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


def push(
    folder: str | Path,
    repo_id: str,
    *,
    tasks: str | list[str] = "all",
    private: bool | None = None,
    create_pr: bool = False,
) -> str:
    """Publish the data sets of a folder, or go on with that. What is there with the same content is not sent again.

    The token is that of `HF_TOKEN` or of `hf auth login`.

    Args:
        folder: built by `build`.
        repo_id: of the data set on the Hub, "user/name"; made if it is not there.
        tasks: patterns of those of the folder to publish. Others that are in the repository stay.
        private: whether a new repository is private.
        create_pr: open a pull request rather than commit; run again, the same one goes on.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: if there is nothing to publish, its build is not finished, or there is no token.
        HfHubHTTPError: if the Hub refuses, or fails again and again.
    """
    folder = Path(folder)
    _check_token()
    with lock_folder(folder):
        manifests = _finished_tasks(folder, tasks)
        api = HfApi(library_name="jat")
        repo_id = _persistently(
            lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        ).repo_id
        message = f"Push {', '.join(manifests)}" if len(manifests) < 4 else f"Push {len(manifests)} tasks"
        revision, url = "main", f"{api.endpoint}/datasets/{repo_id}"
        if create_pr:
            number = _persistently(lambda: _pull_request(api, repo_id, message))
            revision, url = f"refs/pr/{number}", f"{url}/discussions/{number}"

        def send() -> None:
            api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=[f"{name}/*.parquet" for name in manifests],
                revision=revision,
                commit_message=message,
            )
            _commit_card(api, repo_id, revision, folder, manifests, message)

        _persistently(send)
    return url


def push_model(folder: str | Path, repo_id: str, *, private: bool | None = None, create_pr: bool = False) -> str:
    """Publish a model's folder in one commit: the model, its processor, their code, its card, replay and report.

    Checkpoints and the log of the evaluation stay here. Weights and reports of an earlier push that are not in the
    folder any more are deleted there.

    Args:
        folder: of the model; `examples/report.py` makes its report and replay.
        repo_id: of the model on the Hub, "user/name"; made if it is not there.
        private: whether a new repository is private.
        create_pr: open a pull request rather than commit.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: if the folder holds no model, or there is no token.
        HfHubHTTPError: if the Hub refuses, or fails again and again.
    """
    folder = Path(folder)
    _check_token()
    write_model_card(folder, repo_id)  # refuses a folder without a model
    api = HfApi(library_name="jat")
    repo_id = _persistently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
    commit = _persistently(
        lambda: api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=MODEL_FILES,
            ignore_patterns=["checkpoints/*"],
            delete_patterns=["*.safetensors", f"{REPORT}/*"],
            commit_message="Push the model",
            create_pr=create_pr,
        )
    )
    return commit.pr_url or f"{api.endpoint}/{repo_id}"


def _check_token() -> None:
    if get_token() is None:
        raise ValueError("no token for the Hub: set HF_TOKEN, or log in with `hf auth login`")


def _finished_tasks(folder: Path, patterns: str | list[str]) -> dict[str, dict[str, Any]]:
    """The manifests of the tasks to publish.

    Raises:
        ValueError: if a pattern names none, or one's files are not those of its manifest.
    """
    chosen = {path.name: read_manifest(path) for path in find_tasks(folder, patterns)}
    for name, manifest in chosen.items():
        files = {path.name for path in find_shards(folder / name)}
        if files != set(manifest["shards"]):
            raise ValueError(
                f"{folder / name} is not finished: its manifest names {len(manifest['shards'])} shards, it holds "
                f"{len(files)}: run the command that built it again"
            )
    return chosen


def _pull_request(api: HfApi, repo_id: str, title: str) -> int:
    """The open pull request of this title, or a new one."""
    for discussion in api.get_repo_discussions(repo_id, repo_type="dataset", discussion_type="pull_request"):
        if discussion.title == title and discussion.status in ("draft", "open"):
            return discussion.num
    return api.create_pull_request(repo_id, title, repo_type="dataset").num


def _commit_card(
    api: HfApi, repo_id: str, revision: str, folder: Path, manifests: dict[str, dict[str, Any]], message: str
) -> None:
    """Commit manifests, card and pictures, and delete the shards that no manifest names any more."""
    head = api.repo_info(repo_id, repo_type="dataset", revision=revision).sha
    tree = api.list_repo_tree(repo_id, repo_type="dataset", revision=head, recursive=True)
    files = {entry.path for entry in tree if hasattr(entry, "size")}
    everything = {**_published(api, repo_id, head, files, set(manifests)), **manifests}
    needed = {f"{name}/{shard}" for name, manifest in everything.items() for shard in manifest["shards"]}
    if missing := sorted(needed - files):
        raise _NotThereYet(f"{len(missing)} shards are not in the repository, such as {missing[0]}")
    stale = {
        path for path in files - needed if path.endswith(".parquet") and PurePosixPath(path).parent.name in manifests
    }
    with tempfile.TemporaryDirectory() as drawings:
        local = {f"{ASSETS}/{path.name}": path for path in sorted((folder / ASSETS).glob("*.png"))}
        if figure := draw_returns(Path(drawings) / "returns.png", everything):
            local[f"{ASSETS}/{figure.name}"] = figure
        pictures = {path for path in files if path.startswith(f"{ASSETS}/")} | set(local)
        card = dataset_card(dict(sorted(everything.items())), sorted(pictures), repo_id)
        additions = {"README.md": card.encode(), **local}
        additions |= {f"{name}/{MANIFEST}": folder / name / MANIFEST for name in manifests}
        api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in additions.items()]
            + [CommitOperationDelete(path) for path in sorted(stale)],
            repo_type="dataset",
            revision=revision,
            parent_commit=head,
            commit_message=f"{message}: the card",
        )


def _published(api: HfApi, repo_id: str, head: str, files: set[str], pushed: set[str]) -> dict[str, dict[str, Any]]:
    """The manifests of other tasks in the repository."""
    manifests = {}
    for path in sorted(files):
        name = PurePosixPath(path).parent.name
        if path == f"{name}/{MANIFEST}" and name not in pushed:
            downloaded = api.hf_hub_download(repo_id, path, repo_type="dataset", revision=head)
            manifests[name] = read_manifest(Path(downloaded).parent)
    return manifests


class _NotThereYet(ValueError):
    """What was sent has gone again, as when someone else pushed the same tasks at the same time."""


def _passes(failure: BaseException) -> bool:
    """Whether it may be otherwise a little later."""
    if isinstance(failure, HfHubHTTPError):
        return failure.response.status_code in _PASSING_STATUS
    return isinstance(failure, httpx2.TransportError | _NotThereYet)


def _persistently(attempt: Callable[[], Result]) -> Result:
    """Try again, after longer and longer waits, where the Hub or the connection fails in a way that passes."""
    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return attempt()
        except (HfHubHTTPError, httpx2.TransportError, RuntimeError, _NotThereYet) as error:
            # The client wraps what goes wrong while it uploads a file.
            failure = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
            if not _passes(failure) or number == MAX_ATTEMPTS:
                raise
            wait = min(0.5 * 2**number, LONGEST_WAIT)
            print(f"the Hub failed ({failure}); trying again in {wait:.0f} s", flush=True)
            time.sleep(wait)
    raise AssertionError
