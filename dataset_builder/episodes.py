"""The record of one episode, and the rows it becomes.

An `Episode` is made by `rollout`, checked here, and becomes a row of the data set: observation t, the action taken on
it and the reward that followed it stand at index t of their columns. The observation after the last action is not
stored.

An episode with images becomes several rows, for a whole game may take 100 MB: each holds up to `TIMESTEPS_PER_ROW`
timesteps, and the columns `episode_index` and `first_timestep` say of which episode, and from where on. `Episodes`
puts them together again.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from .tasks import TaskSpec, get_task

# The type of every column that a task may have. One row holds one episode (of a text subset: one text).
COLUMN_TYPES = {
    "continuous_observations": List(List(Value("float32"))),
    "discrete_observations": List(List(Value("int64"))),
    "text_observations": List(Value("string")),
    "image_observations": List(Image()),
    "continuous_actions": List(List(Value("float32"))),
    "discrete_actions": List(Value("int64")),
    "rewards": List(Value("float32")),
    "text": Value("string"),
    "images": Image(),
}
# These tell the rows of an episode with images: its index in the build, and where in the episode the row begins.
PART_COLUMNS = {"episode_index": Value("int64"), "first_timestep": Value("int64")}
# 128 frames of 84x84x4 bytes are 3.6 MB even if nothing of them can be compressed.
TIMESTEPS_PER_ROW = 128

# Element type and number of dimensions per timestep. Text is a sequence of str, images are `Frames`.
_ARRAY_COLUMNS = {
    "continuous_observations": (np.float32, 1),
    "discrete_observations": (np.int64, 1),
    "continuous_actions": (np.float32, 1),
    "discrete_actions": (np.int64, 0),
    "rewards": (np.float32, 0),
}


def task_features(task: TaskSpec) -> Features:
    """The `datasets.Features` of a task: the published columns, and of tasks with images those of `PART_COLUMNS`."""
    parts = PART_COLUMNS if task.has_images else {}
    return Features({column: COLUMN_TYPES[column] for column in task.columns} | parts)


@cache
def row_schema(task: TaskSpec) -> pa.Schema:
    """The same as Arrow's schema, with the features in its metadata."""
    return task_features(task).arrow_schema


class Frames(Sequence):
    """Images in a row, kept as PNG files, which lose nothing: a long Atari episode takes 100 MB rather than 760.

    `frames[t]` and `np.asarray(frames)` are uint8 arrays of shape (height, width, channels) and (timesteps, ...).
    """

    def __init__(self, files: Sequence[bytes] = ()) -> None:
        self.files = list(files)

    def append(self, frame: np.ndarray) -> None:
        file = io.BytesIO()
        PILImage.fromarray(frame).save(file, "PNG", compress_level=3)  # as small as the default, in half the time
        self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Frames(self.files[index])
        return np.asarray(PILImage.open(io.BytesIO(self.files[index])))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([self[t] for t in range(len(self))]).astype(dtype or np.uint8, copy=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """One episode of one policy in one environment.

    Args:
        task: the task that was played.
        seed: seed of the environment's reset and of the policy.
        observations: by key of the environment's observation, an array of shape (timesteps, ...), `Frames` for images,
            or a tuple of str for text; empty where they were not kept, as in evaluations.
        actions: as executed, float32 of shape (timesteps, size) or int64 of shape (timesteps,).
        rewards: float32 of shape (timesteps,), unclipped; `rewards[t]` follows `actions[t]`.
        terminated: whether the environment ended the episode, rather than a limit of time.
        success: whether the environment reported success at any timestep; None where it knows no success.

    Raises:
        ValueError: if the columns' lengths or types do not fit the task; the message names every fault.
    """

    task: TaskSpec
    seed: int
    observations: dict[str, np.ndarray | Frames | tuple[str, ...]]
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    success: bool | None = None

    def __post_init__(self) -> None:
        if self.observations:
            check_row(self.row, self.task, where=f"episode with seed {self.seed}")

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        success = "" if self.success is None else f", success={self.success}"
        return (
            f"Episode({self.task.name}, seed={self.seed}, {len(self)} timesteps, return={self.total_reward:g}{success})"
        )

    @property
    def row(self) -> dict[str, Any]:
        """The whole episode: column -> sequence of equal length."""
        observations = {f"{key}s": values for key, values in self.observations.items()}
        return {**observations, self.task.action_column: self.actions, "rewards": self.rewards}

    def as_rows(self, index: int) -> pa.RecordBatch:
        """The episode as rows of the data set.

        Args:
            index: of the episode in the build.
        """
        schema, row = row_schema(self.task), self.row
        starts = range(0, len(self), TIMESTEPS_PER_ROW) if self.task.has_images else (0,)
        offsets = pa.array([*starts, len(self)], pa.int32())
        arrays = [
            pa.ListArray.from_arrays(offsets, _arrow_values(row[column]), type=schema.field(column).type)
            for column in self.task.columns
        ]
        if self.task.has_images:
            arrays += [pa.array([index] * len(starts)), pa.array(starts)]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    @property
    def total_reward(self) -> float:
        """The return: the undiscounted sum of all rewards."""
        return float(np.sum(self.rewards, dtype=np.float64))

    @property
    def score(self) -> float:
        """The return that the published scores report: over the task's `score_horizon` first timesteps."""
        return float(np.sum(self.rewards[: self.task.score_horizon], dtype=np.float64))


def _arrow_values(values: Any) -> pa.Array:
    """An episode's column as an Arrow array with one element for each timestep."""
    if isinstance(values, Frames):
        paths = pa.nulls(len(values), pa.string())
        return pa.StructArray.from_arrays([pa.array(values.files, pa.binary()), paths], ["bytes", "path"])
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
    return pa.array(values)


def check_row(row: dict[str, Any], task: TaskSpec, where: str) -> None:
    """Refuse an episode whose columns do not fit its task.

    Raises:
        ValueError: naming the task, `where`, and every column that is missing, unknown, ragged, of the wrong type or
            holds values that are not finite.
    """
    faults = [f"column {column!r} is missing" for column in task.columns if column not in row]
    faults += [
        f"column {column!r} is unknown, expected {', '.join(task.columns)}"
        for column in row
        if column not in task.columns
    ]
    for column in task.columns:
        if column in _ARRAY_COLUMNS and column in row:
            faults += _array_faults(column, row[column])
    lengths = {column: len(row[column]) for column in task.columns if column in row}
    if len(set(lengths.values())) > 1:
        faults.append(f"columns differ in length: {lengths}")
    elif 0 in lengths.values():
        faults.append("it has no timestep")
    if faults:
        raise ValueError(f"{task.name}, {where}: " + "; ".join(faults))


def _array_faults(column: str, values: np.ndarray) -> list[str]:
    dtype, dimensions = _ARRAY_COLUMNS[column]
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != dimensions + 1:
        got = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        shape = "(timesteps" + ", ..." * dimensions + ")"
        return [f"column {column!r} must be an array of {np.dtype(dtype)} {shape}, got {got}"]
    if np.issubdtype(dtype, np.floating) and not np.isfinite(values).all():
        first = int(np.argwhere(~np.isfinite(values))[0][0])
        return [f"column {column!r} holds a value that is not finite at timestep {first}"]
    return []


def check_columns(dataset: Dataset, task: TaskSpec) -> None:
    """Refuse a data set that lacks columns of its task.

    Raises:
        ValueError: naming them.
    """
    if missing := [column for column in task_features(task) if column not in dataset.column_names]:
        raise ValueError(
            f"{task.name}: the data set lacks {', '.join(missing)}; it has {', '.join(dataset.column_names)}"
        )


class Episodes(Sequence):
    """The episodes of a data set, whether each is one row or several.

    `episodes[n]` is the n-th as a dict of its task's columns: arrays, `Frames` for images, tuples of str for texts. A
    part of a data set may begin within an episode: what is there of that one is its first.

    Args:
        dataset: loaded by `datasets.load_dataset`.
        task: the task that it is of.

    Attributes:
        lengths: timesteps of each episode.
        begun_before: timesteps of each episode that are not there, before those that are.

    Raises:
        ValueError: if the data set lacks columns of its task, is a text subset, or its rows are not in order.
    """

    def __init__(self, dataset: Dataset, task: str | TaskSpec) -> None:
        self.task = get_task(task) if isinstance(task, str) else task
        if self.task.domain == "text":
            raise ValueError(f"{self.task.name} is a text subset: its rows are texts, not episodes")
        check_columns(dataset, self.task)
        self.rows = dataset.with_format("arrow")
        rewards = dataset.with_format("arrow", columns=["rewards"])
        row_lengths = np.array([len(rewards[row]["rewards"][0].values) for row in range(len(dataset))], np.int64)
        # Row r holds the timesteps of its episode from first_timesteps[r] on; row first_rows[n] begins episode n.
        first_timesteps, begins = np.zeros(len(dataset), np.int64), np.ones(len(dataset), bool)
        if self.task.has_images:
            places = dataset.with_format("numpy", columns=list(PART_COLUMNS))[:]
            first_timesteps, numbers = (np.asarray(places[column]) for column in ("first_timestep", "episode_index"))
            follows = (numbers[1:] == numbers[:-1]) & (first_timesteps[1:] == first_timesteps[:-1] + row_lengths[:-1])
            begins[1:] = ~follows
            if len(astray := np.flatnonzero(begins[1:] & (first_timesteps[1:] > 0)) + 1):
                row = astray[0]
                raise ValueError(
                    f"{self.task.name}: row {row} holds timesteps from {first_timesteps[row]} on of episode "
                    f"{numbers[row]}, which do not follow those of the row before it: keep the rows in the order of "
                    f"{' and '.join(PART_COLUMNS)}"
                )
        self.first_rows = np.append(np.flatnonzero(begins), len(dataset))
        self.begun_before = first_timesteps[self.first_rows[:-1]]
        self.first_timesteps = first_timesteps - np.repeat(self.begun_before, np.diff(self.first_rows))
        ends = np.append(0, np.cumsum(row_lengths))
        self.lengths = ends[self.first_rows[1:]] - ends[self.first_rows[:-1]]

    @property
    def described(self) -> str:
        return f"{len(self):,} episodes, {self.lengths.sum():,} timesteps"

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.read(range(len(self))[number], 0, None)

    def read(self, number: int, start: int, stop: int | None) -> dict[str, Any]:
        """The timesteps `start` to `stop` of an episode, without reading the rows that hold none of them."""
        stop = int(self.lengths[number]) if stop is None else stop
        columns: dict[str, list[Any]] = {column: [] for column in self.task.columns}
        for row in range(self.first_rows[number], self.first_rows[number + 1]):
            first = int(self.first_timesteps[row])
            last = int(self.first_timesteps[row + 1]) if row + 1 < self.first_rows[number + 1] else stop
            if first < stop and last > start:
                table = self.rows[row]
                for column, pieces in columns.items():
                    values = table[column][0].values
                    skipped = max(start - first, 0)
                    pieces.append(column_values(column, values.slice(skipped, max(stop - first, 0) - skipped)))
        return {column: join_values(pieces) for column, pieces in columns.items()}


def column_values(column: str, values: pa.Array) -> Any:
    """A column of one row as `Episodes` gives it."""
    if column == "image_observations":
        return Frames(values.field("bytes").to_pylist())
    if column == "text_observations":
        return tuple(values.to_pylist())
    if pa.types.is_list(values.type):
        return values.flatten().to_numpy().reshape(len(values), -1)
    return values.to_numpy()


def join_values(pieces: list[Any]) -> Any:
    """A column of several rows, put together."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], Frames):
        return Frames([file for piece in pieces for file in piece.files])
    return np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else sum(pieces, ())


def load_episodes(data: str, task: str | TaskSpec, split: str = "train") -> Episodes:
    """The episodes of a task, from a folder or a Hub repository.

    load_episodes("data", "atari-pong")[0]["image_observations"]
    """
    name = task if isinstance(task, str) else task.name
    return Episodes(load_dataset(str(data), name, split=split), task)
