"""Scores: the published ones, those measured of our own experts, and normalisation by them.

`published_scores.csv` holds, for every task, the published expert, random and human scores and those of the published
JAT agent: figures from the paper (Gallouédec et al. 2024, arXiv 2402.09844) and its Hub model card; the human scores
are those of Mnih et al. 2015. Meta-World's are returns over the first 100 timesteps.

`scores.json` holds what the random policy and the experts of this package reach: `python -m dataset_builder score`
measures and writes it.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

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

    def normalized(self, score: float) -> float | None:
        """(score - random) / (expert - random): 0 is random, 1 the published expert.

        None where the published expert is not better than random by more than random episodes vary (as on
        metaworld-disassemble), so that a ratio would say nothing.
        """
        if self.expert is None or self.random is None or self.expert - self.random <= (self.random_std or 0.0):
            return None
        return (score - self.random) / (self.expert - self.random)


def normalize(task: str, score: float) -> tuple[float, str] | None:
    """A score between random (0) and an expert (1), and which expert that is.

    It is the published one, or where that is no better than random the best of ours as it was measured; None where
    there is neither.
    """
    published = reference_scores(task).normalized(score)
    if published is not None:
        return published, "published"
    measured = {policy: found for (name, policy), found in _own_scores().items() if name == task}
    random = measured.pop("random", None)
    best = max(measured.values(), key=lambda found: found.score_mean, default=None)
    if random is None or best is None or best.score_mean - random.score_mean <= random.score_std:
        return None
    return (score - random.score_mean) / (best.score_mean - random.score_mean), f"our {best.policy}"


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
