"""Scores: the published ones, those measured of our own experts, and normalisation by them.

`published_scores.csv` holds, for every task, the published expert, random and human scores and those of the published
JAT agent: figures from the paper (Gallouédec et al. 2024, arXiv 2402.09844) and its Hub model card; the human scores
are those of Mnih et al. 2015. Meta-World's are returns over the first 100 timesteps.

`scores.json` holds what the random policy and the experts of this package reach: `python -m dataset_builder score`
measures and writes it.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import trim_mean

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredScore:
    """What a policy was measured to reach on one task, on seeds that are in no data set.

    Args:
        task: name of the task.
        policy: "random" or a kind of expert.
        episodes: how many were played.
        dropped_starts: how many besides the expert gave up.
        cut: how many episodes the task's horizon ended.
        seed: base seed.
        return_mean, return_std: over whole episodes.
        score_mean, score_std: over the task's `score_horizon`.
        success: share of the episodes; None where the environment knows none.
        timesteps: of an episode, on average.
        steps_per_second: of policy and environment in one process.
        versions: of the packages that decide what happens in an episode.
    """

    task: str
    policy: str
    episodes: int
    dropped_starts: int
    cut: int
    seed: int
    return_mean: float
    return_std: float
    score_mean: float
    score_std: float
    success: float | None
    timesteps: float
    steps_per_second: float
    versions: dict[str, str]

    @property
    def standard_error(self) -> float:
        """Of the mean score."""
        return self.score_std / self.episodes**0.5


def read_scores(path: Path | None = None) -> dict[tuple[str, str], MeasuredScore]:
    """Measured scores by task and policy; those of the package by default, none if there is no such file."""
    source = path or resources.files(__package__) / SCORES
    if not source.is_file():
        return {}
    scores = [MeasuredScore(**record) for record in json.loads(source.read_text(encoding="utf-8"))]
    return {(score.task, score.policy): score for score in scores}


@cache
def _own_scores() -> dict[tuple[str, str], MeasuredScore]:
    return read_scores()


def format_scores(scores: Iterable[MeasuredScore]) -> str:
    """Scores as JSON, one to a line."""
    lines = [json.dumps(asdict(score)) for score in sorted(scores, key=lambda score: (score.task, score.policy))]
    return "[\n" + ",\n".join(lines) + "\n]\n"


@dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """Published scores of one task; None where none was published."""

    expert: float | None = None
    random: float | None = None
    random_std: float | None = None
    human: float | None = None
    jat: float | None = None


@dataclass(frozen=True)
class Yardstick:
    """What scores of a task are measured by: a random score is 0, another's is 1."""

    random: float
    other: float
    name: str  # of the other: "published", "our network", "human"

    def normalized(self, score: Any) -> Any:
        """(score - random) / (other - random), of a number or an array."""
        return (score - self.random) / (self.other - self.random)


def expert_yardstick(task: str) -> Yardstick | None:
    """Random and the published expert, or the best of ours as it was measured where that is no better than random.

    An expert that is not better than random by more than random episodes vary (as the published one on
    metaworld-disassemble) makes no ratio that says anything. None where there is no expert.
    """
    published = reference_scores(task)
    is_known = published.expert is not None and published.random is not None
    if is_known and published.expert - published.random > (published.random_std or 0.0):
        return Yardstick(published.random, published.expert, "published")
    measured = {policy: found for (name, policy), found in _own_scores().items() if name == task}
    random = measured.pop("random", None)
    best = max(measured.values(), key=lambda found: found.score_mean, default=None)
    if random is None or best is None or best.score_mean - random.score_mean <= random.score_std:
        return None
    return Yardstick(random.score_mean, best.score_mean, f"our {best.policy}")


def human_yardstick(task: str) -> Yardstick | None:
    """Random and the human score, which games of Atari have."""
    published = reference_scores(task)
    if published.human is None or published.random is None:
        return None
    return Yardstick(published.random, published.human, "human")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic and the 95% interval that holds it."""

    value: float
    low: float
    high: float


def summarize_tasks(scores: Sequence[Sequence[float]], resamples: int = 2000) -> dict[str, Interval]:
    """Statistics of several tasks together: mean, median and interquartile mean of normalised scores.

    Mean and median are those of the tasks' means; the interquartile mean is that of the middle half of all episodes,
    which neither a few tasks nor a few episodes decide. The intervals come from a bootstrap that draws episodes anew
    within each task (Agarwal et al. 2021, arXiv 2108.13264).

    Args:
        scores: normalised, of every episode of each task.
        resamples: of the bootstrap; the same ones every time.
    """
    rng = np.random.default_rng(0)
    arrays = [np.asarray(task, np.float64) for task in scores]
    drawn = [array[rng.integers(len(array), size=(resamples, len(array)))] for array in arrays]

    def statistics(tasks: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Of arrays (..., episodes)."""
        means = np.stack([task.mean(-1) for task in tasks], axis=-1)
        episodes = np.concatenate(tasks, axis=-1)
        return {
            "mean": means.mean(-1),
            "median": np.median(means, axis=-1),
            "interquartile mean": trim_mean(episodes, 0.25, axis=-1),
        }

    resampled = statistics(drawn)
    return {
        name: Interval(value=float(value), low=float(low), high=float(high))
        for name, value in statistics(arrays).items()
        for low, high in [np.quantile(resampled[name], [0.025, 0.975])]
    }


def performance_profile(
    scores: Sequence[Sequence[float]], thresholds: np.ndarray, resamples: int = 500
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each threshold the share of the episodes above it, averaged over tasks, and its 95% bootstrap interval.

    Args:
        scores: normalised, of every episode of each task.
        thresholds: increasing.
        resamples: of the bootstrap, which draws episodes anew within each task; the same ones every time.
    """
    rng = np.random.default_rng(0)

    def shares(task: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(np.sort(task), thresholds, side="right") / len(task)

    arrays = [np.asarray(task, np.float64) for task in scores]
    values = np.mean([shares(task) for task in arrays], axis=0)
    resampled = [
        np.mean([shares(task[rng.integers(len(task), size=len(task))]) for task in arrays], axis=0)
        for _ in range(resamples)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return values, low, high


# Columns of the file by the names of the fields.
_COLUMNS = {
    "expert": "expert_mean",
    "random": "random_mean",
    "random_std": "random_std",
    "human": "human_mean",
    "jat": "jat_mean",
}


@cache
def _table() -> dict[str, ReferenceScores]:
    with resources.files(__package__).joinpath("published_scores.csv").open(encoding="utf-8") as file:
        return {
            row["task"]: ReferenceScores(
                **{name: float(row[column]) for name, column in _COLUMNS.items() if row[column]}
            )
            for row in csv.DictReader(file)
        }


def reference_scores(task: str) -> ReferenceScores:
    """The published scores of a task by its name; all None for a task that was not published."""
    return _table().get(task, ReferenceScores())
