"""The files of a data set: what stands where, and what each says of itself.

    DIR/README.md                                         the card, with the configurations and their features
    DIR/metaworld-reach/train-00000-of-00004.parquet      a shard: some episodes of one split
    DIR/metaworld-reach/manifest.json                     how the task was built, and every episode's return
    DIR/.parts/metaworld-reach/*.arrow                    finished episodes that are in no shard yet
    DIR/.lock                                             held by the process that builds

A shard describes itself in its footer, appears whole or not at all, and never changes: more episodes are more shards. A
part is an Arrow stream to which one worker appends its episodes as it finishes them; if the worker dies, all but the
one that it was writing can be read. DIR may be a folder, or a URL that fsspec knows, such as s3://bucket/data.
"""

import contextlib
import importlib.metadata
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet
from datasets.config import DEFAULT_CDC_OPTIONS
from filelock import FileLock, Timeout
from upath import UPath

from .tasks import TaskSpec

if TYPE_CHECKING:
    from .evaluation import Player

MANIFEST = "manifest.json"
PARTS = ".parts"
LOCK = ".lock"
UNFINISHED = ".unfinished-"

SPLITS = ("train", "test")
# Every tenth episode is a test episode, whatever else is built.
TEST_EVERY = 10

# The Hub's viewer reads whole row groups, of up to 100 MB.
ROW_GROUP_BYTES = 32_000_000

_FOOTER_KEY = b"jat"
# What the environments of a domain are made of, and what decides how an episode is written.
_PLAYING_PACKAGES = {
    "atari": ("ale-py", "opencv-python-headless"),
    "babyai": ("minigrid",),
    "metaworld": ("metaworld", "mujoco"),
    "mujoco": ("mujoco",),
}
_WRITING_PACKAGES = ("datasets", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the episodes of a task are a function of, beside their index and the versions of packages.

    Args:
        task: name of the task.
        expert: kind of expert, see `dataset_builder.experts.EXPERTS`, or where its code is.
        seed: base seed.
        max_episode_steps: truncate episodes after so many timesteps; None for the task's own horizon.
        action_noise: of the actions as executed, see `envs.ActionNoise`; the expert's own are stored.
        student: an agent whose actions are executed in place of some of the expert's, see `students.StudentActs`; those
            that the expert meant are stored.
    """

    task: str
    expert: str
    seed: int = 0
    max_episode_steps: int | None = None
    action_noise: float = 0.0
    student: "Player | None" = None

    @property
    def env_options(self) -> dict[str, Any]:
        """What `make_env` takes."""
        return {"max_episode_steps": self.max_episode_steps, "action_noise": self.action_noise}

    def described(self) -> dict[str, Any]:
        """As JSON."""
        described = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "student"}
        return described | ({"student": self.student.described()} if self.student else {})


def split_of(index: int) -> str:
    """The split of an episode, decided by its index alone."""
    return "test" if index % TEST_EVERY == TEST_EVERY - 1 else "train"


def playing_packages(task: TaskSpec) -> tuple[str, ...]:
    """The packages that decide what happens in an episode: other versions may play other episodes."""
    return () if task.domain == "text" else ("jat", "gymnasium", *_PLAYING_PACKAGES.get(task.domain, ()))


def origin(task: TaskSpec, recipe: Recipe) -> dict[str, Any]:
    """Where episodes come from, as every file says of itself."""
    packages = (*playing_packages(task), *_WRITING_PACKAGES)
    return {"recipe": recipe.described(), "versions": {name: package_version(name) for name in packages}}


@cache
def package_version(name: str) -> str:
    return importlib.metadata.version(name)


def as_path(output: str | Path) -> Path:
    """A folder, or for a URL of fsspec something that behaves like one."""
    return UPath(output)


def is_local(path: Path) -> bool:
    return getattr(path, "protocol", "") in ("", "file", "local")


def make_folder(path: Path) -> None:
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.fs.makedirs(path.path, exist_ok=True)  # does nothing where there are no folders


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone. Places that are not on this machine cannot be held.

    Raises:
        ValueError: if another process holds it.
    """
    if not is_local(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another process builds or measures in {folder}: wait for it, stop it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all."""
    make_folder(path.parent)
    local = is_local(path)
    descriptor, unfinished = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent if local else None)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if local:
            Path(unfinished).chmod(0o644)
            Path(unfinished).replace(path)
        else:
            path.fs.put_file(unfinished, path.path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


@contextlib.contextmanager
def new_part(folder: Path, schema: pa.Schema, origin: dict[str, Any]) -> Iterator["PartWriter"]:
    """A part to which finished episodes are appended. Where files cannot grow, it appears when all of them are there.

    Args:
        folder: of the task's parts; it exists.
        schema: of the rows.
        origin: recipe and versions.
    """
    path = folder / f"{uuid.uuid4().hex}.arrow"
    file = path.open("xb", buffering=0) if is_local(path) else whole_file(path)
    described = schema.with_metadata({_FOOTER_KEY: json.dumps(origin)})
    with file as stream, pa.ipc.new_stream(stream, described) as writer:
        yield PartWriter(path, writer)


@dataclass(frozen=True)
class PartWriter:
    path: Path
    writer: pa.ipc.RecordBatchStreamWriter

    def append(self, rows: pa.RecordBatch, record: dict[str, Any]) -> None:
        self.writer.write_batch(rows, custom_metadata={_FOOTER_KEY: json.dumps(record)})


@dataclass(frozen=True)
class Part:
    """What can be read of a part: all but the episode that its worker was writing when it died.

    Args:
        origin: recipe and versions; None if the worker died before it had written them.
        episodes: rows and record of each finished episode.
    """

    origin: dict[str, Any] | None
    episodes: list[tuple[pa.RecordBatch, dict[str, Any]]]


def read_part(path: Path) -> Part:
    """Read a part; the rows of a local one are not copied into memory."""
    with contextlib.ExitStack() as stack:
        part = Part(None, [])
        try:
            stream = stack.enter_context(pa.memory_map(str(path)) if is_local(path) else path.open("rb"))
            reader = stack.enter_context(pa.ipc.open_stream(stream))
            part = Part(json.loads(reader.schema.metadata[_FOOTER_KEY]), [])
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                part.episodes.append((batch, json.loads(metadata[_FOOTER_KEY])))
        except (StopIteration, pa.ArrowInvalid, OSError):
            return part


def write_shard(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], footer: dict[str, Any]) -> None:
    """Write rows as a Parquet file, a row group at a time; the footer has their number and size in memory besides.

    Pages have checksums, for `verify`, and are cut where their content says, so that the Hub stores what two versions
    of a file have in common once.
    """
    with (
        whole_file(path) as stream,
        pyarrow.parquet.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            use_content_defined_chunking=DEFAULT_CDC_OPTIONS,
            write_page_index=True,
            write_page_checksum=True,
        ) as writer,
    ):
        rows, size = 0, 0
        group: list[pa.RecordBatch] = []
        group_size = 0
        for batch in batches:
            for row in [batch] if len(batch) == 1 else (batch.slice(number, 1) for number in range(len(batch))):
                group.append(row)
                row_size = row.nbytes
                rows, size, group_size = rows + 1, size + row_size, group_size + row_size
                if group_size >= ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(group))
                    group, group_size = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group))
        writer.add_key_value_metadata({_FOOTER_KEY: json.dumps({**footer, "rows": rows, "bytes": size})})


def read_footer(path: Path) -> dict[str, Any]:
    """How a shard was made: its recipe, its split, and a record of every episode.

    Raises:
        ValueError: if the file is damaged, or was not written by this builder.
    """
    try:
        with path.open("rb") as stream:
            metadata = pyarrow.parquet.read_metadata(stream).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is not a Parquet file, or a damaged one ({error}): delete it and build again"
        ) from error
    if _FOOTER_KEY not in metadata:
        raise ValueError(f"{path} was not written by this builder: choose another folder")
    return json.loads(metadata[_FOOTER_KEY])


def find_shards(folder: Path) -> dict[Path, dict[str, Any]]:
    """The shards in a task's folder with their footers, in the order of their splits and rows."""
    shards = {path: read_footer(path) for path in folder.glob("*.parquet")} if folder.is_dir() else {}
    return dict(sorted(shards.items(), key=lambda item: (SPLITS.index(item[1]["split"]), item[1]["first_index"])))


def unnamed_shard(folder: Path, split: str, first_index: int) -> Path:
    """Where a shard stands until it is known how many there are."""
    return folder / f"{split}-from-{first_index:08d}.parquet"


def name_shards(folder: Path) -> None:
    """Give a task's shards their places among all of them."""
    shards = find_shards(folder)
    for split in SPLITS:
        paths = [path for path, footer in shards.items() if footer["split"] == split]
        for number, path in enumerate(paths):
            named = folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet"
            if path.name != named.name:
                path.rename(named)


def finish_task(folder: Path, task: TaskSpec) -> None:
    """Name a task's shards and sum them up in `manifest.json`, when all of them are written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink()
    name_shards(folder)
    shards = find_shards(folder)
    footers = list(shards.values())
    manifest = {
        "task": task.described(),
        "recipe": footers[0]["recipe"],
        "versions": footers[0]["versions"],
        "shards": [path.name for path in shards],
        "splits": {
            split: {
                "rows": sum(footer["rows"] for footer in footers if footer["split"] == split),
                "bytes": sum(footer["bytes"] for footer in footers if footer["split"] == split),
                "files": sum(footer["split"] == split for footer in footers),
            }
            for split in SPLITS
            if any(footer["split"] == split for footer in footers)
        },
        "file_bytes": sum(path.stat().st_size for path in shards),
        **_summary(footers),
    }
    with whole_file(folder / MANIFEST) as stream:
        stream.write((json.dumps(manifest, indent=1) + "\n").encode())


def _summary(footers: list[dict[str, Any]]) -> dict[str, Any]:
    """The outcome of all episodes; of a text subset, how many rows were dropped and why."""
    if "episodes" not in footers[0]:
        reasons: dict[str, int] = {}
        for footer in footers:
            for reason, count in footer["dropped"].items():
                reasons[reason] = reasons.get(reason, 0) + count
        return {"rows": sum(footer["rows"] for footer in footers), "dropped": dict(sorted(reasons.items()))}
    records = sorted((record for footer in footers for record in footer["episodes"]), key=lambda r: r["index"])
    successes = [record["success"] for record in records if record["success"] is not None]
    return {
        "timesteps": sum(record["timesteps"] for record in records),
        "mean_return": sum(record["return"] for record in records) / len(records),
        "success_rate": sum(successes) / len(successes) if successes else None,
        "dropped_starts": sum(len(record["dropped_starts"]) for record in records),
        "episodes": records,
    }


def find_tasks(folder: Path, patterns: str | list[str]) -> list[Path]:
    """The folders of the tasks that have data in a folder and that any pattern names, whether registered or not.

    Args:
        folder: of data sets.
        patterns: "all", domains, names or globs.

    Raises:
        ValueError: if a pattern names none.
    """
    domains = {path.parent.name: _domain(path) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = {name for name, domain in domains.items() if pattern in ("all", domain) or fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(f"{folder} has no finished data of {pattern!r}; it has {', '.join(domains) or 'none'}")
        chosen |= matches
    return [folder / name for name in sorted(chosen)]


def _domain(manifest: Path) -> str | None:
    """The domain of a task; None if its manifest is damaged."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["task"]["domain"]
    except (ValueError, KeyError, TypeError):
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
