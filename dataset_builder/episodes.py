"""The record of one episode, and the columns it becomes.

An `Episode` is made by `rollout`, checked here, and becomes one row of the data set: observation t, the action taken
on it and the reward that followed it stand at index t of their columns. The observation after the last action is not
stored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value

from .tasks import TaskSpec

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

# Element type and number of dimensions per timestep. Text is a sequence of str instead.
_ARRAY_COLUMNS = {
    "continuous_observations": (np.float32, 1),
    "discrete_observations": (np.int64, 1),
    "image_observations": (np.uint8, 3),
    "continuous_actions": (np.float32, 1),
    "discrete_actions": (np.int64, 0),
    "rewards": (np.float32, 0),
}


def task_features(task: TaskSpec) -> Features:
    """The `datasets.Features` of a task, as published."""
    return Features({column: COLUMN_TYPES[column] for column in task.columns})


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """One episode of one policy in one environment.

    Args:
        task: the task that was played.
        seed: seed of the environment's reset and of the policy.
        observations: by key of the environment's observation, an array of shape (timesteps, ...), or a tuple of str
            for text; empty where they were not kept, as in evaluations.
        actions: as executed, float32 of shape (timesteps, size) or int64 of shape (timesteps,).
        rewards: float32 of shape (timesteps,), unclipped; `rewards[t]` follows `actions[t]`.
        terminated: whether the environment ended the episode, rather than a limit of time.
        success: whether the environment reported success at any timestep; None where it knows no success.

    Raises:
        ValueError: if the columns' lengths or types do not fit the task; the message names every fault.
    """

    task: TaskSpec
    seed: int
    observations: dict[str, np.ndarray | tuple[str, ...]]
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
        """The episode as a row of the data set: column -> sequence of equal length."""
        observations = {f"{key}s": values for key, values in self.observations.items()}
        return {**observations, self.task.action_column: self.actions, "rewards": self.rewards}

    @property
    def encoded_row(self) -> dict[str, Any]:
        """The row as `datasets` stores it: images as PNG files, which lose nothing."""
        row = self.row
        if "image_observations" in row:
            row["image_observations"] = [Image().encode_example(frame) for frame in row["image_observations"]]
        return row

    @property
    def total_reward(self) -> float:
        """The return: the undiscounted sum of all rewards."""
        return float(np.sum(self.rewards, dtype=np.float64))

    @property
    def score(self) -> float:
        """The return that the published scores report: over the task's `score_horizon` first timesteps."""
        return float(np.sum(self.rewards[: self.task.score_horizon], dtype=np.float64))


def check_row(row: dict[str, Any], task: TaskSpec, where: str) -> None:
    """Refuse a row whose columns do not fit its task.

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
