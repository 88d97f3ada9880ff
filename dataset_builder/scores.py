"""Reference scores, and scores normalised by them.

`published_scores.csv` holds, for every task, the published expert, random and human scores and those of the published
JAT agent: figures from the paper (Gallouédec et al. 2024, arXiv 2402.09844) and its Hub model card; the human scores
are those of Mnih et al. 2015. Meta-World's are returns over the first 100 timesteps.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


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
