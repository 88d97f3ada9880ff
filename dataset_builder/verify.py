"""Verifies data sets: reads everything back, plays a sample of episodes again, and compares returns.

What is wrong is named by file and row; nothing is repaired.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from gymnasium import spaces
from PIL import Image
from tqdm import tqdm

from .envs import TaskEnv, make_env
from .episodes import Frames, check_row, column_values, join_values, row_schema
from .executors import map_unordered
from .rollout import episode_seed
from .scores import read_scores
from .shards import (
    MANIFEST,
    SPLITS,
    UNFINISHED,
    Recipe,
    find_tasks,
    playing_packages,
    read_footer,
    read_manifest,
    split_of,
)
from .tasks import TaskSpec
from .text import LONGEST_SIDE

# Of the mean return of the data against that of the expert's measurement, in standard errors of their difference.
MAX_DEVIATION = 6.0
SHARD_NAME = re.compile(r"(train|test)-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class VerifyItem:
    """A task's folder to be verified."""

    folder: Path
    replays: int


@dataclass
class Verdict:
    """What was read of a task, and what is wrong with it."""

    task: str
    rows: int = 0
    episodes: int = 0
    timesteps: int = 0
    replayed: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _StoredEpisode:
    """An episode as it was read back, with the place of its first row."""

    place: str
    record: dict[str, Any]
    columns: dict[str, Any]


def verify(
    folder: str | Path,
    tasks: str | list[str] = "all",
    *,
    replays: int = 3,
    num_workers: int = 1,
    progress: bool = True,
) -> list[Verdict]:
    """Verify the data sets of a folder.

    Every file: that it can be read, with the checksums of its pages; its schema; that all shards of a task are there
    and of one recipe and versions. Every episode: lengths, types, finite values, observations and actions within their
    spaces, what its record says. A sample of episodes, spread over each task: that the stored actions, executed from
    the stored seed, bring the stored observations and rewards again, exactly. Each task: that every episode is there
    once, and that the mean return is that of the expert where it was measured.

    Args:
        folder: built by `build`.
        tasks: patterns of those of the folder.
        replays: how many episodes of each task are played again.
        num_workers: processes, a task at a time each.
        progress: show a bar.

    Returns:
        A verdict for each task.

    Raises:
        ValueError: if the folder holds no data of such tasks.
    """
    folder = Path(folder)
    items = [VerifyItem(path, replays) for path in find_tasks(folder, tasks)]
    verdicts = tqdm(
        map_unordered(verify_task, items, num_workers=num_workers),
        "verifying",
        len(items),
        unit="task",
        disable=not progress,
    )
    return sorted(verdicts, key=lambda verdict: verdict.task)


def verify_task(item: VerifyItem) -> Verdict:
    """Verify one task's folder."""
    folder = item.folder
    verdict = Verdict(folder.name)
    try:
        manifest = read_manifest(folder)
        task = TaskSpec.from_description(manifest["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        verdict.faults.append(f"{folder / MANIFEST} cannot be read ({error!r}): build again")
        return verdict
    footers = _read_footers(folder, task, manifest, verdict)
    if task.domain == "text":
        for path in footers:
            for row, table in _rows(path, task, verdict):
                _check_text(f"{path}, row {row}", table, verdict)
        return verdict

    _check_manifest(folder, manifest, footers, verdict)
    chosen = {int(i) for i in np.linspace(0, len(manifest["episodes"]) - 1, item.replays)}
    seen: dict[int, str] = {}
    returns = []
    recipe = Recipe(**{**manifest["recipe"], "student": None})
    if "student" in manifest["recipe"]:
        chosen = set()
        verdict.notes.append(f"{folder.name}: its episodes cannot be played again without the student in them")
    with make_env(task, **recipe.env_options) as env:
        for path, footer in footers.items():
            for episode in _episodes(path, footer, task, verdict):
                index = episode.record["index"]
                if index in seen:
                    verdict.faults.append(f"{episode.place}: episode {index} is also at {seen[index]}")
                seen[index] = episode.place
                returns.append(episode.record["return"])
                verdict.episodes += 1
                verdict.timesteps += len(episode.columns["rewards"])
                faults = _check_episode(episode, task, env, recipe.seed, footer["split"])
                if not faults and index in chosen:
                    faults = _replay(episode, task, env)
                    verdict.replayed += 1
                verdict.faults += [f"{episode.place} (episode {index}): {fault}" for fault in faults]
    if lacking := sorted({record["index"] for record in manifest["episodes"]} - set(seen)):
        verdict.faults.append(f"{folder}: {len(lacking)} episodes of its manifest are missing, such as {lacking[0]}")
    _compare_returns(folder, manifest, returns, verdict)
    return verdict


def _read_footers(
    folder: Path, task: TaskSpec, manifest: dict[str, Any], verdict: Verdict
) -> dict[Path, dict[str, Any]]:
    """The footers of the shards that can be read; faults of files as such."""
    footers = {}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST or path.name.startswith(UNFINISHED):
            continue
        if not (name := SHARD_NAME.fullmatch(path.name)):
            verdict.faults.append(f"{path} is foreign: expected {MANIFEST} and shards only")
            continue
        try:
            footer = read_footer(path)
            schema = pyarrow.parquet.read_schema(path)
        except (ValueError, OSError) as error:
            verdict.faults.append(str(error))
            continue
        if footer["recipe"] != manifest["recipe"]:
            verdict.faults.append(
                f"{path} is mixed in: it was built by {footer['recipe']}, the others by {manifest['recipe']}"
            )
            continue
        for package in playing_packages(task):
            versions = footer["versions"].get(package), manifest["versions"].get(package)
            if versions[0] != versions[1]:
                verdict.faults.append(
                    f"{path} is mixed in: it was built with {package} {versions[0]}, the others with {versions[1]}"
                )
        if footer["split"] != name[1]:
            verdict.faults.append(f"{path} holds rows of the split {footer['split']}")
        if not schema.equals(row_schema(task)):
            verdict.faults.append(f"{path}: expected the columns {_columns(row_schema(task))}, got {_columns(schema)}")
            continue
        footers[path] = footer
    for name in manifest["shards"]:
        if not (folder / name).exists():
            verdict.faults.append(f"{folder / name} is missing")
    for split in SPLITS:
        names = [path for path in footers if path.name.startswith(split)]
        totals = {SHARD_NAME.fullmatch(path.name)[3] for path in names}
        if len(totals) > 1:
            verdict.faults.append(f"{folder}: shards of several builds of the split {split}: of {sorted(totals)}")
    return footers


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in schema)


def _rows(path: Path, task: TaskSpec, verdict: Verdict) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a shard one by one, as far as they can be read."""
    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    first = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        try:
            table = file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            verdict.faults.append(f"{path}, rows {first} to {first + rows - 1}: damaged ({error})")
        else:
            for row in range(rows):
                verdict.rows += 1
                yield first + row, table.slice(row, 1)
        first += rows


def _episodes(path: Path, footer: dict[str, Any], task: TaskSpec, verdict: Verdict) -> Iterator[_StoredEpisode]:
    """The episodes of a shard with their records, as far as they can be read."""
    by_index = {record["index"]: record for record in footer["episodes"]}
    place, record = "", None
    pieces: list[dict[str, Any]] = []

    def put_together() -> Iterator[_StoredEpisode]:
        if record is not None:
            yield _StoredEpisode(place, record, {c: join_values([piece[c] for piece in pieces]) for c in task.columns})

    for row, table in _rows(path, task, verdict):
        here = f"{path}, row {row}"
        try:
            values = {column: column_values(column, table.column(column)[0].values) for column in task.columns}
        except (AttributeError, ValueError, pa.ArrowException) as error:
            verdict.faults.append(f"{here}: a column is ragged or lacks values ({error})")
            continue
        if task.has_images:
            index, timestep = (table.column(name)[0].as_py() for name in ("episode_index", "first_timestep"))
        else:
            index, timestep = footer["episodes"][row]["index"] if row < len(footer["episodes"]) else None, 0
        if timestep == 0:
            yield from put_together()
            place, record, pieces = here, by_index.get(index), [values]
            if record is None:
                verdict.faults.append(f"{here}: its footer knows no such episode")
        elif record is None or record["index"] != index or timestep != sum(len(piece["rewards"]) for piece in pieces):
            verdict.faults.append(f"{here}: timestep {timestep} of episode {index} is out of place")
        else:
            pieces.append(values)
    yield from put_together()


def _check_manifest(
    folder: Path, manifest: dict[str, Any], footers: dict[Path, dict[str, Any]], verdict: Verdict
) -> None:
    """What the manifest says of episodes is what the shards say."""
    listed = {record["index"]: record for record in manifest["episodes"]}
    for path, footer in footers.items():
        for record in footer["episodes"]:
            if listed.get(record["index"]) != record:
                verdict.faults.append(f"{folder / MANIFEST} says of episode {record['index']} other than {path}")
                break


def _check_episode(episode: _StoredEpisode, task: TaskSpec, env: TaskEnv, base_seed: int, split: str) -> list[str]:
    record, columns = episode.record, episode.columns
    try:
        check_row(columns, task, where=episode.place)
    except ValueError as error:
        return [str(error)]
    faults = []
    if split_of(record["index"]) != split:
        faults.append(f"it belongs into the split {split_of(record['index'])}, not {split}")
    expected = episode_seed(task.name, record["index"], base_seed, attempt=len(record["dropped_starts"]))
    if record["seed"] != expected:
        faults.append(f"its seed is {record['seed']}, expected {expected}")
    found = {
        "timesteps": len(columns["rewards"]),
        "return": float(np.sum(columns["rewards"], dtype=np.float64)),
        "score": float(np.sum(columns["rewards"][: task.score_horizon], dtype=np.float64)),
    }
    for key, value in found.items():
        if record[key] != value:
            faults.append(f"its record says {key} {record[key]}, its rewards say {value}")
    for key in task.observation_keys:
        faults += _outside(f"{key}s", columns[f"{key}s"], env.observation_space[key])
    faults += _outside(task.action_column, columns[task.action_column], env.action_space)
    return faults


def _outside(column: str, values: Any, space: spaces.Space) -> list[str]:
    """Values of a column that the space does not have."""
    if isinstance(values, tuple):
        return [] if all(values) else [f"{column} has no text at timestep {values.index('')}"]
    if isinstance(values, Frames):
        shapes = {Image.open(io.BytesIO(file)).size[::-1] for file in values.files}
        return [] if shapes == {space.shape[:2]} else [f"{column} has images of {sorted(shapes)}, not of {space.shape}"]
    if isinstance(space, spaces.Discrete):
        low, high, shape = space.start, space.start + space.n - 1, ()
    elif isinstance(space, spaces.MultiDiscrete):
        low, high, shape = space.start, space.start + space.nvec - 1, space.shape
    else:
        low, high, shape = space.low, space.high, space.shape
    if values.shape[1:] != shape:
        return [f"{column} has values of shape {values.shape[1:]} a timestep, expected {shape}"]
    outside = ((values < low) | (values > high)).reshape(len(values), -1).any(axis=1)
    return [f"{column} leaves {space} at timestep {int(np.argmax(outside))}"] if outside.any() else []


def _replay(episode: _StoredEpisode, task: TaskSpec, env: TaskEnv) -> list[str]:
    """Play the stored actions again."""
    columns = episode.columns
    observation, _ = env.reset(seed=episode.record["seed"])
    over = False
    for t, action in enumerate(columns[task.action_column]):
        for key in task.observation_keys:
            if not np.array_equal(observation[key], columns[f"{key}s"][t]):
                return [f"played again, {key} differs at timestep {t}"]
        if over:
            return [f"played again, the episode is over at timestep {t - 1} of {len(columns['rewards'])}"]
        observation, reward, terminated, truncated, _ = env.step(int(action) if np.ndim(action) == 0 else action)
        if np.float32(reward) != columns["rewards"][t]:
            return [f"played again, the reward of timestep {t} is {reward}, stored is {columns['rewards'][t]}"]
        over = terminated or truncated
    return [] if over else [f"played again, the episode goes on after timestep {len(columns['rewards']) - 1}"]


def _compare_returns(folder: Path, manifest: dict[str, Any], returns: list[float], verdict: Verdict) -> None:
    """The data's mean return against the expert's measured one."""
    recipe = manifest["recipe"]
    measured = read_scores().get((recipe["task"], recipe["expert"]))
    if recipe["max_episode_steps"] is not None or recipe["action_noise"] or "student" in recipe:
        verdict.notes.append(f"{folder.name}: its episodes were cut short or disturbed, their returns are not compared")
        return
    if measured is None or not returns:
        verdict.notes.append(f"{folder.name}: {recipe['expert']} has no measured score, returns are not compared")
        return
    spread = max(float(np.std(returns)), measured.return_std)
    error = spread * np.sqrt(1 / len(returns) + 1 / measured.episodes)
    # Where an expert's returns hardly vary, they still do by rounding.
    tolerance = MAX_DEVIATION * error + 1e-4 * abs(measured.return_mean)
    if abs(np.mean(returns) - measured.return_mean) > tolerance:
        verdict.faults.append(
            f"{folder}: the mean return is {np.mean(returns):.2f}, the expert {recipe['expert']} was measured to reach "
            f"{measured.return_mean:.2f} ± {measured.return_std:.2f}"
        )


def _check_text(place: str, table: pa.Table, verdict: Verdict) -> None:
    row = table.to_pylist()[0]
    if not row["text"]:
        verdict.faults.append(f"{place}: it has no text")
    if "images" in row:
        try:
            with Image.open(io.BytesIO(row["images"]["bytes"])) as image:
                image.load()
                if max(image.size) > LONGEST_SIDE:
                    verdict.faults.append(f"{place}: its image is {image.size}, at most {LONGEST_SIDE} are expected")
        except (OSError, TypeError, SyntaxError) as error:
            verdict.faults.append(f"{place}: its image cannot be read ({error})")


def verdict_line(verdict: Verdict) -> str:
    """What there is to say of a task in a line."""
    what = (
        f"{verdict.episodes} episodes, {verdict.timesteps:,} timesteps" if verdict.episodes else f"{verdict.rows} rows"
    )
    return f"{verdict.task:40} {what}, {verdict.replayed} played again, {len(verdict.faults)} faults"
