"""The training mix: windows of episodes, in batches of one task each.

A window is a stretch of one episode. Rewards are shifted here: beside an observation stands the reward that was
received before it. Tasks differ in the shapes of their columns, so a batch holds windows of one task, drawn by weight.

    datasets = {task: load_dataset(folder, task, split="train") for task in tasks}
    windows = Windows(datasets)
    loader = DataLoader(windows, batch_sampler=TaskBatches(windows, batch_size=16, seed=0), collate_fn=...)
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image

from .tasks import TaskSpec, get_task

# Timesteps of a window and weights of the losses, as published (Gallouédec et al. 2024, appendix).
WINDOW = 256
IMAGE_WINDOW = 32
_LOSS_WEIGHTS = {"mujoco": 10.0, "metaworld": 50.0, "mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0}


def loss_weight(task: TaskSpec) -> float:
    """Weight of a task's losses: small errors of continuous actions count like wrong discrete ones."""
    return _LOSS_WEIGHTS.get(task.name, _LOSS_WEIGHTS.get(task.domain, 1.0))


class WindowKey(NamedTuple):
    """Where a window lies."""

    task: str
    row: int
    start: int
    prompted: bool = False  # whether the task's instruction goes with it


class Windows:
    """Windows of episodes, read from the data sets' Arrow tables without copying whole episodes.

    Args:
        datasets: by task name, each with the columns of its task; one row for each episode.
        window: timesteps of a window; shorter at the end of an episode.
        image_window: the same for tasks with image observations.

    Raises:
        ValueError: if a data set lacks columns of its task or has no episode.
    """

    def __init__(self, datasets: Mapping[str, Dataset], window: int = WINDOW, image_window: int = IMAGE_WINDOW) -> None:
        self.datasets, self.lengths, self.window_lengths = {}, {}, {}
        for name, dataset in datasets.items():
            columns = get_task(name).columns
            if missing := [column for column in columns if column not in dataset.column_names]:
                raise ValueError(
                    f"{name}: the data set lacks {', '.join(missing)}; it has {', '.join(dataset.column_names)}"
                )
            if len(dataset) == 0:
                raise ValueError(f"{name}: the data set has no episode: build some, or leave the task out")
            self.datasets[name] = dataset.with_format("arrow")
            rewards = dataset.with_format("arrow", columns=["rewards"])
            self.lengths[name] = np.array([len(rewards[row]["rewards"][0].values) for row in range(len(dataset))])
            self.window_lengths[name] = image_window if "image_observations" in columns else window

    def __getitem__(self, key: WindowKey) -> dict[str, Any]:
        """The window's columns as arrays (tuples of str for text), its `task`, `loss_weight`, a float, and `prompt`."""
        task = get_task(key.task)
        length = min(self.window_lengths[key.task], int(self.lengths[key.task][key.row]) - key.start)
        episode = self.datasets[key.task][key.row]
        window: dict[str, Any] = {}
        for column in task.columns:
            values = episode[column][0].values
            if column == "rewards":
                window[column] = shift_rewards(values.to_numpy(), key.start, length)
            else:
                window[column] = _read(column, values.slice(key.start, length))
        prompt = task.instruction if key.prompted else None
        return {**window, "task": task.name, "loss_weight": loss_weight(task), "prompt": prompt}


def shift_rewards(rewards: np.ndarray, start: int, length: int) -> np.ndarray:
    """The rewards received before the timesteps `start` to `start + length - 1`; 0 before the first of an episode."""
    shifted = np.zeros(length, np.float32)
    first = max(start, 1)
    shifted[first - start :] = rewards[first - 1 : start + length - 1]
    return shifted


def _read(column: str, values: pa.Array) -> Any:
    if column == "image_observations":
        return np.stack([np.asarray(Image.open(io.BytesIO(frame.as_py()))) for frame in values.field("bytes")])
    if column == "text_observations":
        return tuple(values.to_pylist())
    if pa.types.is_list(values.type):
        return values.flatten().to_numpy().reshape(len(values), -1)
    return values.to_numpy()


class TaskBatches:
    """Batch sampler: every batch holds windows of one task, drawn at random by the tasks' weights.

    Batch n is a function of the seed and of n alone, so that a training that skips the batches it has seen goes on
    exactly as if it had never stopped.

    Args:
        windows: what to draw from.
        batch_size: windows in a batch.
        seed: of all draws.
        num_batches: length of the training.
        weights: of the tasks, by name; 1 by default.
        prompt_fraction: how many of the windows come with their task's instruction.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        seed: int = 0,
        num_batches: int = 1000,
        weights: Mapping[str, float] | None = None,
        prompt_fraction: float = 0.0,
    ) -> None:
        self.windows, self.batch_size, self.seed, self.num_batches = windows, batch_size, seed, num_batches
        self.prompt_fraction = prompt_fraction
        self.tasks = list(windows.datasets)
        chances = np.array([(weights or {}).get(task, 1.0) for task in self.tasks])
        self.chances = chances / chances.sum()

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[WindowKey]]:
        for number in range(self.num_batches):
            rng = np.random.default_rng([self.seed, number])
            task = self.tasks[rng.choice(len(self.tasks), p=self.chances)]
            lengths, window = self.windows.lengths[task], self.windows.window_lengths[task]
            rows = rng.integers(len(lengths), size=self.batch_size)
            # From before the start of an episode to its last timestep: all are equally likely to be in a window, but
            # for the first ones, which are up to twice as likely and are seen as a beginning.
            starts = rng.integers(1 - window, lengths[rows]).clip(min=0)
            prompted = rng.random(self.batch_size) < self.prompt_fraction
            yield [
                WindowKey(task, int(row), int(start), bool(prompt))
                for row, start, prompt in zip(rows, starts, prompted, strict=True)
            ]
