"""Reference scores, and scores normalised by them; and what our own experts were measured to reach.

`published_scores.csv` holds, for every task, the published expert, random and human scores and those of the published
JAT agent: figures from the paper (Gallouédec et al. 2024, arXiv 2402.09844) and its Hub model card; the human scores
are those of Mnih et al. 2015. Meta-World's are returns over the first 100 timesteps.

`expert_scores.csv` holds what the experts of this package reach: `python -m dataset_builder score` measures and writes
it.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path


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


EXPERT_SCORES = "expert_scores.csv"


@dataclass(frozen=True, kw_only=True)
class ExpertScore:
    """What an expert of this package was measured to reach on one task.

    Args:
        task: name of the task.
        expert: kind of expert.
        episodes: how many were played, on seeds that are in no data set.
        dropped_starts: how many besides the expert gave up.
        seed: base seed.
        return_mean, return_std: over whole episodes.
        score_mean: over the task's `score_horizon`.
        success: share of the episodes; None where the environment knows none.
    """

    task: str
    expert: str
    episodes: int
    dropped_starts: int
    seed: int
    return_mean: float
    return_std: float
    score_mean: float
    success: float | None


def read_expert_scores(path: Path | None = None) -> dict[tuple[str, str], ExpertScore]:
    """Measured scores by task and expert; those of the package by default, none if there is no such file."""
    source = path or resources.files(__package__) / EXPERT_SCORES
    if not source.is_file():
        return {}
    with source.open(encoding="utf-8") as file:
        rows = [
            ExpertScore(
                task=row["task"],
                expert=row["expert"],
                episodes=int(row["episodes"]),
                dropped_starts=int(row["dropped_starts"]),
                seed=int(row["seed"]),
                return_mean=float(row["return_mean"]),
                return_std=float(row["return_std"]),
                score_mean=float(row["score_mean"]),
                success=float(row["success"]) if row["success"] else None,
            )
            for row in csv.DictReader(file)
        ]
    return {(row.task, row.expert): row for row in rows}


def write_expert_scores(scores: Iterable[ExpertScore], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ExpertScore)], lineterminator="\n")
        writer.writeheader()
        for score in sorted(scores, key=lambda score: (score.task, score.expert)):
            writer.writerow({name: "" if value is None else value for name, value in asdict(score).items()})
