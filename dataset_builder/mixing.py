"""The training mix: windows of episodes, in batches of one task each.

A window is a stretch of one episode. Rewards are shifted here: beside an observation stands the reward that was
received before it. Tasks differ in the shapes of their columns, so a batch holds windows of one task, drawn by weight.

    datasets = {task: load_dataset(folder, task, split="train") for task in tasks}
    windows = Windows(datasets)
    loader = DataLoader(windows, batch_sampler=TaskBatches(windows, batch_size=16, seed=0), collate_fn=...)
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .episodes import Episodes
from .tasks import TaskSpec

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
    episode: int
    start: int
    prompted: bool = False  # whether the task's instruction goes with it


class Windows:
    """Windows of episodes, read from the data sets' Arrow tables without copying whole episodes.

    Args:
        datasets: by task name, each with the columns of its task.
        window: timesteps of a window; shorter at the end of an episode.
        image_window: the same for tasks with image observations.

    Raises:
        ValueError: if a data set lacks columns of its task or has no episode.
    """

    def __init__(self, datasets: Mapping[str, Dataset], window: int = WINDOW, image_window: int = IMAGE_WINDOW) -> None:
        self.episodes = {name: Episodes(dataset, name) for name, dataset in datasets.items()}
        for name, episodes in self.episodes.items():
            if not len(episodes):
                raise ValueError(f"{name}: the data set has no episode: build some, or leave the task out")
        self.lengths = {name: episodes.lengths for name, episodes in self.episodes.items()}
        self.window_lengths = {
            name: image_window if episodes.task.has_images else window for name, episodes in self.episodes.items()
        }

    def __getitem__(self, key: WindowKey) -> dict[str, Any]:
        """The window's columns as arrays (tuples of str for text), its `task`, `loss_weight`, a float, and `prompt`."""
        episodes = self.episodes[key.task]
        task = episodes.task
        stop = min(key.start + self.window_lengths[key.task], int(episodes.lengths[key.episode]))
        # The timestep before the window has the reward that its first observation comes with.
        before = min(key.start, 1)
        window = episodes.read(key.episode, key.start - before, stop)
        if before:
            window = {column: values if column == "rewards" else values[1:] for column, values in window.items()}
        window["rewards"] = np.append(np.zeros(1 - before, np.float32), window["rewards"][:-1])
        if task.has_images:
            window["image_observations"] = np.asarray(window["image_observations"])
        prompt = task.instruction if key.prompted else None
        return {**window, "task": task.name, "loss_weight": loss_weight(task), "prompt": prompt}


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
        self.tasks = list(windows.episodes)
        chances = np.array([(weights or {}).get(task, 1.0) for task in self.tasks])
        self.chances = chances / chances.sum()

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[WindowKey]]:
        for number in range(self.num_batches):
            rng = np.random.default_rng([self.seed, number])
            task = self.tasks[rng.choice(len(self.tasks), p=self.chances)]
            lengths, window = self.windows.lengths[task], self.windows.window_lengths[task]
            episodes = rng.integers(len(lengths), size=self.batch_size)
            # From before the start of an episode to its last timestep: all are equally likely to be in a window, but
            # for the first ones, which are up to twice as likely and are seen as a beginning.
            starts = rng.integers(1 - window, lengths[episodes]).clip(min=0)
            prompted = rng.random(self.batch_size) < self.prompt_fraction
            yield [
                WindowKey(task, int(episode), int(start), bool(prompt))
                for episode, start, prompt in zip(episodes, starts, prompted, strict=True)
            ]
