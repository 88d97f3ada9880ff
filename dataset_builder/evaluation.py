"""Evaluation: policies play episodes on seeds that are in no data set.

Experts, the random policy and JAT are measured by the same loop, `rollout.play`. JAT plays several environments at
once: their observations make one batch for the network.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from .envs import TaskEnv, make_env
from .episodes import Episode
from .rollout import Action, ExpertGaveUp, Observation, Policy, episode_seed, play, rollout
from .scores import normalize, reference_scores
from .tasks import TaskSpec, get_task


@runtime_checkable
class BatchPolicy(Protocol):
    """Chooses actions for several environments of one task at once."""

    def begin(self, env: TaskEnv, num_envs: int) -> None:
        """Begin an episode in so many environments like this one."""

    def restart(self, row: int) -> None:
        """Begin a new episode in one of them."""

    def act_batch(self, observations: Observation, rewards: np.ndarray) -> Sequence[Action]:
        """An action for every row of the observations; rewards are 0 where an episode begins."""


class AgentPolicy:
    """JAT as a policy, for one environment or for several at once.

    Args:
        model: a `JatModelForCausalLM`.
        processor: its `JatProcessor`.
        deterministic: take the likeliest of discrete actions rather than sample.
        context_window: timesteps that the agent looks back at most.
        prompted: tell the agent its task's instruction.
        remembered: share of the window that the agent remembers when it is full.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        deterministic: bool = False,
        context_window: int | None = None,
        prompted: bool = False,
        remembered: float = 0.5,
    ) -> None:
        self.model, self.processor, self.prompted, self.remembered = model, processor, prompted, remembered
        self.options = {"deterministic": deterministic, "context_window": context_window}

    def reset(self, env: TaskEnv, seed: int) -> None:
        self.begin(env, None)

    def _prompt(self, env: TaskEnv) -> Any:
        return self.processor(text=env.task.instruction, return_tensors="pt") if self.prompted else None

    def act(self, observation: Observation, reward: float | None) -> Action:
        return self.model.get_next_action(self.processor(observation, reward=reward), self.context, **self.options)

    def begin(self, env: TaskEnv, num_envs: int | None) -> None:
        self.context = self.model.reset(env.action_space, num_envs=num_envs, prompt=self._prompt(env))
        self.context.remembered = self.remembered

    def restart(self, row: int) -> None:
        self.context.reset([row])

    def act_batch(self, observations: Observation, rewards: np.ndarray) -> Sequence[Action]:
        return self.model.get_next_action(self.processor(observations, reward=rewards), self.context, **self.options)


def play_batch(envs: Sequence[TaskEnv], policy: BatchPolicy, seeds: Sequence[int]) -> Iterator[Episode]:
    """Play one episode for each seed, as many at once as there are environments; yields them as they end."""
    waiting = list(seeds)
    policy.begin(envs[0], len(envs))
    conversations: list[Any] = [None] * len(envs)
    observations: list[Observation] = [{}] * len(envs)
    rewards = np.zeros(len(envs), np.float32)

    def start(row: int) -> None:
        conversations[row] = None
        if waiting:
            conversations[row] = play(envs[row], waiting.pop(0), keep_observations=False)
            observations[row], _ = next(conversations[row])
            rewards[row] = 0.0
            policy.restart(row)

    for row in range(len(envs)):
        start(row)
    while any(conversations):
        # A row without an episode goes on showing its last observation; its actions are executed nowhere.
        actions = policy.act_batch(_stack(observations), rewards)
        for row, conversation in enumerate(conversations):
            if conversation is not None:
                try:
                    observations[row], rewards[row] = conversation.send(actions[row])
                except StopIteration as end:
                    yield end.value
                    start(row)


def _stack(observations: Sequence[Observation]) -> Observation:
    return {
        key: [observation[key] for observation in observations]
        if isinstance(first, str)
        else np.stack([observation[key] for observation in observations])
        for key, first in observations[0].items()
    }


@dataclass(frozen=True)
class TaskScore:
    """What a policy reached on one task.

    Args:
        task: name of the task.
        scores: of every episode, the return over the task's `score_horizon`.
        returns: of every episode, the return over the whole of it.
        successes: of every episode, empty where the environment knows no success.
        timesteps: of every episode.
        seed: base seed.
    """

    task: str
    scores: tuple[float, ...]
    returns: tuple[float, ...]
    successes: tuple[bool, ...]
    timesteps: tuple[int, ...]
    seed: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def standard_error(self) -> float:
        """Of the mean; not a number for a single episode."""
        return float(np.std(self.scores, ddof=1) / np.sqrt(len(self.scores))) if len(self.scores) > 1 else float("nan")

    @property
    def success_rate(self) -> float | None:
        return float(np.mean(self.successes)) if self.successes else None

    @property
    def normalized(self) -> tuple[float, str] | None:
        """The mean between a random score (0) and an expert's (1), and whose that is; see `scores.normalize`."""
        return normalize(self.task, self.mean)


def evaluate(
    policy: Policy | BatchPolicy,
    task: str | TaskSpec,
    *,
    episodes: int,
    num_envs: int = 1,
    seed: int = 0,
    purpose: str = "evaluate",
    progress: bool = True,
    **env_kwargs: Any,
) -> TaskScore:
    """Play episodes of one task and score them.

    Args:
        policy: plays one environment, or if it is a [`BatchPolicy`] `num_envs` at once.
        task: a row of the table or its name.
        episodes: how many. Their seeds are in no data set.
        num_envs: how many environments a batch policy plays at once.
        seed: base seed.
        purpose: of the episodes, see `episode_seed`; another one has other starts.
        progress: show a bar.
        env_kwargs: handed to `make_env`.
    """
    task = get_task(task) if isinstance(task, str) else task
    seeds = [episode_seed(task.name, index, seed, purpose=purpose) for index in range(episodes)]
    envs = [
        make_env(task, **env_kwargs) for _ in range(min(num_envs, episodes) if isinstance(policy, BatchPolicy) else 1)
    ]
    try:
        played = (
            play_batch(envs, policy, seeds) if isinstance(policy, BatchPolicy) else _play_all(envs[0], policy, seeds)
        )
        finished = {
            episode.seed: episode for episode in tqdm(played, task.name, episodes, unit="episode", disable=not progress)
        }
    finally:
        for env in envs:
            env.close()
    ordered = [finished[seed] for seed in seeds if seed in finished]
    return TaskScore(
        task=task.name,
        scores=tuple(episode.score for episode in ordered),
        returns=tuple(episode.total_reward for episode in ordered),
        successes=tuple(episode.success for episode in ordered if episode.success is not None),
        timesteps=tuple(len(episode) for episode in ordered),
        seed=seed,
    )


def _play_all(env: TaskEnv, policy: Policy, seeds: Sequence[int]) -> Iterator[Episode]:
    for seed in seeds:
        try:
            yield rollout(env, policy, seed, keep_observations=False)
        except ExpertGaveUp:
            continue  # a start that the expert does not accept is not scored


def score_rows(scores: Sequence[TaskScore]) -> list[dict[str, str]]:
    """The table of an evaluation, ready to print: one dict of texts for each task."""

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    def normalized_text(score: TaskScore) -> str:
        if score.normalized is None:
            return "-"
        value, expert = score.normalized
        return f"{value:.2f}" + ("" if expert == "published" else f" ({expert})")

    rows = []
    for score in scores:
        reference = reference_scores(score.task)
        rows.append(
            {
                "task": score.task,
                "episodes": str(len(score.scores)),
                "return": f"{score.mean:.2f} ± {score.standard_error:.2f}"
                if len(score.scores) > 1
                else text(score.mean),
                "success": text(score.success_rate),
                "random": text(reference.random),
                "expert": text(reference.expert),
                "normalized": normalized_text(score),
            }
        )
    return rows


def format_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of texts as a Markdown table, aligned for a terminal too."""
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}

    def line(cells: dict[str, str]) -> str:
        first, *others = columns
        return (
            "| " + " | ".join([cells[first].ljust(widths[first]), *(cells[c].rjust(widths[c]) for c in others)]) + " |"
        )

    rule = {
        column: "-" * widths[column] if column == columns[0] else "-" * (widths[column] - 1) + ":" for column in columns
    }
    return "\n".join([line({column: column for column in columns}), line(rule), *(line(row) for row in rows)])


def write_scores(scores: Sequence[TaskScore], path: Path, **about: Any) -> None:
    """Write an evaluation as JSON: every episode's return, and the means beside the published ones."""
    record = {
        **about,
        "tasks": [
            {
                **asdict(score),
                "mean": score.mean,
                "standard_error": score.standard_error if len(score.scores) > 1 else None,
                "success_rate": score.success_rate,
                "normalized": score.normalized and score.normalized[0],
                "normalized_by": score.normalized and score.normalized[1],
                "published": asdict(reference_scores(score.task)),
            }
            for score in scores
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
