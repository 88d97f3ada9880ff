"""The training mix: windows of episodes and texts, in batches of one shape each.

A window is a stretch of one episode. Rewards are shifted here: beside an observation stands the reward that was
received before it. A batch holds windows of tasks whose columns have the same shapes: all of Atari, BabyAI or
Meta-World, most tasks of MuJoCo alone.

    datasets = {task: load_dataset(folder, task, split="train") for task in tasks}
    windows = Windows(datasets)
    batches = TaskBatches(FixedWeights.published(tasks), batch_size=16, seed=0, shapes=windows.shapes)
    loader = DataLoader(windows, batch_sampler=batches, collate_fn=...)

A `SamplingRule` decides how often each task is drawn, `TaskBatches` which tasks batch number n is of, `Windows` what
stands in its rows. All of it is a function of the seed, of n and of the rule's weights. So a training that is
interrupted goes on with the batches that it would have seen; of several processes each may take every k-th batch; and
the processes of a `DataLoader` load whole batches.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from .episodes import Episodes, check_columns, join_values
from .tasks import TaskSpec, get_task

# Timesteps of a window and weights of the losses, as published (Gallouédec et al. 2024, appendix).
WINDOW = 256
IMAGE_WINDOW = 32
# A text is cut to so many characters, some 512 tokens, before it is tokenized.
TEXT_WINDOW = 2048
_LOSS_WEIGHTS = {"mujoco": 10.0, "metaworld": 50.0, "mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0}
_TEXT_WEIGHT = 10.0


def loss_weight(task: TaskSpec) -> float:
    """Weight of a task's losses: small errors of continuous actions count like wrong discrete ones."""
    return _LOSS_WEIGHTS.get(task.name, _LOSS_WEIGHTS.get(task.domain, 1.0))


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn.


class WindowKey(NamedTuple):
    """A row of a batch of the training."""

    task: str
    batch: int
    row: int


@dataclass(frozen=True)
class Window:
    """A row of a batch.

    Args:
        task: what it is of.
        place: where it lies in the data, for messages.
        columns: arrays of shape (timesteps, ...), a tuple of str for text observations; of a text subset the text and
            its image.
        prompt: the task's instruction, or None.
        is_end: of a text subset, whether the text ends with the window.
    """

    task: TaskSpec
    place: str
    columns: dict[str, Any]
    prompt: str | None = None
    is_end: bool = False

    @property
    def shape(self) -> Hashable:
        """Of a timestep: that of every column."""
        return tuple((column, np.shape(values)[1:]) for column, values in self.columns.items())

    def followed_by(self, other: "Window") -> "Window":
        """Both as one."""
        columns = {column: join_values([values, other.columns[column]]) for column, values in self.columns.items()}
        return replace(other, place=f"{self.place}, {other.place}", columns=columns)


class Texts:
    """The rows of a text subset, as `Episodes` are those of a task.

    Raises:
        ValueError: if the data set lacks columns of the subset.
    """

    def __init__(self, dataset: Dataset, task: TaskSpec) -> None:
        check_columns(dataset, task)
        self.rows = dataset.select_columns(list(task.columns))

    @property
    def described(self) -> str:
        return f"{len(self):,} texts"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number]


class Windows:
    """Windows of data sets, read from their Arrow tables without copying whole episodes.

    An episode is drawn, and a window anywhere in it: from before its start to its last timestep, so that all timesteps
    are equally likely to be in a window, but for the first ones, which are up to twice as likely and are seen as a
    beginning. Of a text longer than a window a stretch between two spaces is drawn.

    A window may come with prompts, which tell tasks apart that look alike. A demonstration is a stretch of another
    episode of the task, which takes the first half of the window; in every second one it is that episode's end.

    Args:
        datasets: by task name, each with the columns of its task.
        window: timesteps of a window, its demonstration included; shorter at the end of an episode.
        image_window: the same for tasks with image observations.
        text_window: characters of a text.
        instructed: how many of the windows come with their task's instruction, from 0 to 1.
        demonstrated: how many of them come with a demonstration.
        seed: of all draws.

    Raises:
        ValueError: if a data set lacks columns of its task or has no episode.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        window: int = WINDOW,
        image_window: int = IMAGE_WINDOW,
        *,
        text_window: int = TEXT_WINDOW,
        instructed: float = 0.0,
        demonstrated: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, fraction in (("instructed", instructed), ("demonstrated", demonstrated)):
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, got {fraction}")
        shortest = 2 if demonstrated else 1
        if min(window, image_window, text_window) < shortest:
            raise ValueError(f"windows must be {shortest} long at least, got {window}, {image_window}, {text_window}")
        self.tasks = {name: get_task(name) for name in datasets}
        self.window_lengths = {name: image_window if task.has_images else window for name, task in self.tasks.items()}
        self.text_window, self.instructed, self.demonstrated = text_window, instructed, demonstrated
        self.seed = seed
        self._open(datasets)

    def _open(self, datasets: Mapping[str, Dataset]) -> None:
        self.sources = {name: as_source(dataset, name) for name, dataset in datasets.items()}

    def source(self, key: WindowKey) -> Episodes | Texts:
        """What a row is drawn from."""
        return self.sources[key.task]

    @cached_property
    def shapes(self) -> dict[str, Hashable]:
        """Of a timestep of every task. Those with the same one fit into one batch."""
        return {name: self[WindowKey(name, 0, 0)].shape for name in self.tasks}

    def __getitem__(self, key: WindowKey) -> Window:
        rng = np.random.default_rng([self.seed, key.batch, key.row])
        task, source = self.tasks[key.task], self.source(key)
        number = int(rng.integers(len(source)))
        if isinstance(source, Texts):
            row = source[number]
            stretch = draw_stretch(row["text"], self.text_window, rng)
            return Window(task, f"row {number}", {**row, "text": stretch}, is_end=row["text"].endswith(stretch))

        prompt = task.instruction if rng.random() < self.instructed else None
        length = self.window_lengths[key.task]
        if rng.random() < self.demonstrated:
            other = (number + int(rng.integers(1, max(2, len(source))))) % len(source)
            demonstration = self._stretch(source, other, length // 2, rng, at_end=rng.random() < 0.5)
            window = demonstration.followed_by(self._stretch(source, number, length - length // 2, rng))
        else:
            window = self._stretch(source, number, length, rng)
        return replace(window, prompt=prompt)

    @staticmethod
    def _stretch(
        episodes: Episodes, number: int, length: int, rng: np.random.Generator, at_end: bool = False
    ) -> Window:
        """A window anywhere in an episode, or its last timesteps."""
        timesteps = int(episodes.lengths[number])
        drawn = int(rng.integers(1 - length, timesteps))
        return cut_window(episodes, number, timesteps - length if at_end else drawn, length)


def cut_window(episodes: Episodes, number: int, start: int, length: int) -> Window:
    """So many timesteps of an episode from one on, as far as there are any, with the rewards received before them.

    Args:
        episodes: of a task.
        number: of the episode.
        start: timestep; before the first one that is there, the window begins with that.
        length: of the window.
    """
    timesteps, begun_before = int(episodes.lengths[number]), int(episodes.begun_before[number])
    # The reward before the first timestep is known if that begins the episode: it is 0.
    first = 1 if begun_before and timesteps > 1 else 0
    start = max(start, first)
    stop = min(start + length, timesteps)
    before = min(start, 1)  # the timestep before the window has its first reward
    columns = episodes.read(number, start - before, stop)
    if before:
        columns = {column: values if column == "rewards" else values[1:] for column, values in columns.items()}
    columns["rewards"] = np.append(np.zeros(1 - before, np.float32), columns["rewards"][:-1])
    if episodes.task.has_images:
        columns["image_observations"] = np.asarray(columns["image_observations"])
    place = f"timesteps {start + begun_before} to {stop - 1 + begun_before} of episode {number}"
    return Window(episodes.task, place, columns)


def as_source(dataset: Dataset, name: str) -> Episodes | Texts:
    task = get_task(name)
    source = Texts(dataset, task) if task.domain == "text" else Episodes(dataset, task)
    if not len(source):
        what = "row" if task.domain == "text" else "episode"
        raise ValueError(f"{name}: the data set has no {what}: build some, or leave the task out")
    return source


def draw_stretch(text: str, length: int, rng: np.random.Generator) -> str:
    """A stretch of at most so many characters, between two spaces where there are any."""
    if len(text) <= length:
        return text
    start = int(rng.integers(len(text) - length + 1))
    if start:
        start = text.find(" ", start, start + length) + 1 or start
    stretch = text[start : start + length]
    whole_words = stretch.rpartition(" ")[0] if start + length < len(text) else stretch
    return whole_words or stretch


class StreamedWindows(Windows):
    """Windows of data sets that are streamed, from the Hub for instance, and are on this machine in part only.

    The row groups of a task's Parquet files are read in a random order, another one in every epoch. The windows are
    drawn from one of them for a number of batches, then from the next: at any time one row group of each task, 32 MB at
    most if it was written by `builder`, is in memory. Each process of a `DataLoader` reads all of them: one is enough.

    Args:
        datasets: by task name, loaded with `streaming=True`.
        batches_per_visit: batches, of all tasks, that are drawn before the next row groups are read; by default 8 for
            each task.
        num_streams: how many processes train together; of these, process r takes the batches n with
            n % num_streams == r, and reads other row groups than the others.
        kwargs: as in `Windows`.
    """

    def __init__(
        self,
        datasets: Mapping[str, IterableDataset],
        *args: Any,
        batches_per_visit: int | None = None,
        num_streams: int = 1,
        **kwargs: Any,
    ) -> None:
        self.batches_per_visit = batches_per_visit or 8 * len(datasets)
        self.num_streams = num_streams
        super().__init__(datasets, *args, **kwargs)

    def _open(self, datasets: Mapping[str, IterableDataset]) -> None:
        self.streams = {name: dataset.reshard().with_format("arrow") for name, dataset in datasets.items()}
        self.sources = {}
        self._visited: dict[str, tuple[int, int]] = {}

    def source(self, key: WindowKey) -> Episodes | Texts:
        turn, process = divmod(key.batch, self.num_streams)
        visit = turn // self.batches_per_visit * self.num_streams + process
        stream = self.streams[key.task]
        epoch, place = divmod(visit, stream.num_shards)
        if self._visited.get(key.task) != (epoch, place):
            order = np.random.default_rng([self.seed, epoch, list(self.streams).index(key.task)])
            index = int(order.permutation(stream.num_shards)[place])
            group = stream.shard(num_shards=stream.num_shards, index=index)
            tables = list(group.iter(batch_size=1000)) or [stream.features.arrow_schema.empty_table()]
            self.sources[key.task] = as_source(Dataset(pa.concat_tables(tables)), key.task)
            self._visited[key.task] = (epoch, place)
        return self.sources[key.task]


# ----------------------------------------------------------------------------------------------------------------------
# How often, and in what order.


class SamplingRule(Protocol):
    """How often each task is drawn, which may change with what a training measures."""

    def weights(self) -> Mapping[str, float]:
        """Of every task, as they are now; they need not sum to 1."""

    def update(self, losses: Mapping[str, float]) -> None:
        """Take in the mean loss of each task that was drawn since the last update."""

    def state_dict(self) -> dict[str, Any]:
        """What has changed, as JSON takes it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


class FixedWeights:
    """Every task has a weight, which stays as it is.

    Raises:
        ValueError: if there is no task to draw, or a weight is no weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if faulty := {task: weight for task, weight in weights.items() if not 0 <= weight < np.inf}:
            raise ValueError(f"a task's weight must be a number from 0 on, got {faulty}")
        if not sum(weights.values()):
            raise ValueError(f"expected a task with a weight above 0, got {dict(weights)}")
        self._weights = dict(weights)

    @classmethod
    def published(cls, tasks: Iterable[str]) -> "FixedWeights":
        """10 for text subsets, 1 for the others."""
        return cls({name: _TEXT_WEIGHT if get_task(name).domain == "text" else 1.0 for name in tasks})

    def weights(self) -> dict[str, float]:
        return self._weights

    def update(self, losses: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class TaskBatches:
    """Batch sampler: every batch holds windows of tasks of one shape, drawn at random by the weights of a rule.

    A rule that learns is told the losses after each round of batches. As batches are drawn before they are needed, what
    it makes of them holds from the round after the next on: then no batch depends on how many were drawn ahead.

    Args:
        rule: how often each task is drawn.
        batch_size: windows in a batch.
        seed: of the order of the tasks.
        num_batches: length of the training.
        round_length: batches in a round.
        shapes: of every task; tasks with the same one share batches. By default a batch is of one task.
    """

    def __init__(
        self,
        rule: SamplingRule,
        batch_size: int,
        seed: int = 0,
        num_batches: int = 1000,
        *,
        round_length: int = 1000,
        shapes: Mapping[str, Hashable] | None = None,
    ) -> None:
        self.rule, self.batch_size, self.seed, self.num_batches = rule, batch_size, seed, num_batches
        self.round_length = round_length
        self.shapes = shapes or {task: task for task in rule.weights()}
        self.finished_rounds = 0
        # Of the round that is drawn from, and of the next one.
        self._weights = [dict(rule.weights())] * 2

    def end_round(self, losses: Mapping[str, float]) -> None:
        """Tell the rule what was measured in the round that ends."""
        self.rule.update(losses)
        self.finished_rounds += 1
        self._weights = [self._weights[1], dict(self.rule.weights())]

    def state_dict(self) -> dict[str, Any]:
        """What the batches that are still to come depend on."""
        return {
            "finished_rounds": self.finished_rounds,
            "weights": self._weights,
            "rule": self.rule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.finished_rounds = state["finished_rounds"]
        self._weights = [dict(weights) for weights in state["weights"]]
        self.rule.load_state_dict(state["rule"])

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[WindowKey]]:
        for number in range(self.num_batches):
            weights = self._weights[min(max(number // self.round_length - self.finished_rounds, 0), 1)]
            rng = np.random.default_rng([self.seed, number])
            [first] = draw_tasks(weights, 1, rng)
            sharing = {task: weight for task, weight in weights.items() if self.shapes[task] == self.shapes[first]}
            tasks = draw_tasks(sharing, self.batch_size, rng)
            yield [WindowKey(task, number, row) for row, task in enumerate(tasks)]


def draw_tasks(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    tasks, chances = list(weights), np.array(list(weights.values()))
    return [tasks[index] for index in rng.choice(len(tasks), count, p=chances / chances.sum())]
