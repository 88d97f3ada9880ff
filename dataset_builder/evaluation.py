"""Evaluation: policies play episodes on seeds that are in no data set.

Experts, the random policy and JAT are measured by the same loop, `rollout.play`. JAT plays several environments at
once: their observations make one batch for the network. `evaluate` plays one task here and now; `run_trials` plays any
number of tasks, in parallel, and goes on where it was interrupted.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from .envs import TaskEnv, make_env
from .episodes import Episode
from .executors import flat_map_unordered
from .experts import load_expert
from .rollout import Action, ExpertGaveUp, Observation, Policy, episode_seed, play, rollout
from .shards import package_version, playing_packages, whole_file
from .tasks import TaskSpec, get_task


@runtime_checkable
class BatchPolicy(Protocol):
    """Chooses actions for several environments of one task at once."""

    def begin(self, env: TaskEnv, num_envs: int) -> None:
        """Begin an episode in so many environments like this one."""

    def restart(self, row: int, seed: int) -> None:
        """Begin a new episode in one of them, which was just reset from `seed`."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of them only, as rows 0, 1, and so on."""

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
        demonstrate: gives the columns of an episode of a task, which the agent is shown.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        deterministic: bool = False,
        context_window: int | None = None,
        prompted: bool = False,
        remembered: float = 0.5,
        demonstrate: Callable[[TaskSpec], Mapping[str, Any]] | None = None,
    ) -> None:
        self.model, self.processor, self.prompted, self.remembered = model, processor, prompted, remembered
        self.demonstrate = demonstrate
        self.options = {"deterministic": deterministic, "context_window": context_window}

    def reset(self, env: TaskEnv, seed: int) -> None:
        self.begin(env, None)
        self.restart(0, seed)

    def _prompt(self, task: TaskSpec) -> dict[str, Any]:
        prompt: dict[str, Any] = {}
        if self.prompted:
            prompt |= self.processor(text=task.instruction, return_tensors="pt")
        if self.demonstrate:
            prompt |= self.processor.pad([self.demonstrate(task)], task=task.name)
        return prompt

    def act(self, observation: Observation, reward: float | None) -> Action:
        return self.model.get_next_action(self.processor(observation, reward=reward), self.context, **self.options)

    def begin(self, env: TaskEnv, num_envs: int | None) -> None:
        self.context = self.model.reset(env.action_space, num_envs=num_envs, prompt=self._prompt(env.task))
        self.context.remembered = self.remembered

    def restart(self, row: int, seed: int) -> None:
        self.context.reset([row], [seed])

    def keep(self, rows: Sequence[int]) -> None:
        self.context.keep(rows)

    def act_batch(self, observations: Observation, rewards: np.ndarray) -> Sequence[Action]:
        return self.model.get_next_action(self.processor(observations, reward=rewards), self.context, **self.options)


def play_batch(envs: Sequence[TaskEnv], policy: BatchPolicy, seeds: Sequence[int]) -> Iterator[Episode]:
    """Play one episode for each seed, as many at once as there are environments; yields them as they end."""
    waiting = list(seeds)
    envs = list(envs)[: len(waiting)]
    policy.begin(envs[0], len(envs))
    conversations: list[Any] = [None] * len(envs)
    observations: list[Observation] = [{}] * len(envs)
    rewards = np.zeros(len(envs), np.float32)

    def start(row: int) -> None:
        seed = waiting.pop(0)
        conversations[row] = play(envs[row], seed, keep_observations=False)
        observations[row], _ = next(conversations[row])
        rewards[row] = 0.0
        policy.restart(row, seed)

    for row in range(len(envs)):
        start(row)
    while envs:
        actions = policy.act_batch(stack_observations(observations), rewards)
        kept = []
        for row, conversation in enumerate(conversations):
            try:
                observations[row], rewards[row] = conversation.send(actions[row])
            except StopIteration as end:
                yield end.value
                if not waiting:
                    continue
                start(row)
            kept.append(row)
        if len(kept) < len(envs):
            envs, conversations = [envs[row] for row in kept], [conversations[row] for row in kept]
            observations, rewards = [observations[row] for row in kept], rewards[kept]
            policy.keep(kept)


def stack_observations(observations: Sequence[Observation]) -> Observation:
    """One observation of each environment as a batch: arrays get a first dimension, texts become a list."""
    return {
        key: [observation[key] for observation in observations]
        if isinstance(first, str)
        else np.stack([observation[key] for observation in observations])
        for key, first in observations[0].items()
    }


@dataclass(frozen=True, kw_only=True)
class PlayedEpisode:
    """What is kept of an episode; nothing but its index and seed if the expert gave up its start.

    Args:
        index: of the episode, from which its seed comes.
        seed: of the environment and the policy.
        total_reward: the return.
        score: the return over the task's `score_horizon`.
        success: None where the environment knows none.
        cut: whether the horizon ended it.
        timesteps: its length.
        seconds: that it took; of several environments at once, its share.
    """

    index: int
    seed: int
    total_reward: float | None = None
    score: float | None = None
    success: bool | None = None
    cut: bool = False
    timesteps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """What a policy reached on one task.

    Args:
        task: name of the task.
        seed: base seed.
        episodes: that were played, by their index.
        dropped_starts: how many besides the expert gave up.
    """

    task: str
    seed: int
    episodes: tuple[PlayedEpisode, ...]
    dropped_starts: int = 0

    @classmethod
    def of(cls, task: TaskSpec, seed: int, episodes: Sequence[PlayedEpisode]) -> "TaskScore":
        played = tuple(episode for episode in episodes if episode.total_reward is not None)
        dropped = len(episodes) - len(played)
        return cls(task=task.name, seed=seed, episodes=played, dropped_starts=dropped)

    @property
    def scores(self) -> list[float]:
        return [episode.score for episode in self.episodes]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def standard_error(self) -> float:
        """Of the mean; not a number for a single episode."""
        return float(np.std(self.scores, ddof=1) / np.sqrt(len(self.scores))) if len(self.scores) > 1 else float("nan")

    @property
    def success_rate(self) -> float | None:
        successes = [episode.success for episode in self.episodes if episode.success is not None]
        return float(np.mean(successes)) if successes else None


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
    seeds = {index: episode_seed(task.name, index, seed, purpose=purpose) for index in range(episodes)}
    rows = min(num_envs, episodes) if isinstance(policy, BatchPolicy) else 1
    envs = [make_env(task, **env_kwargs) for _ in range(rows)]
    try:
        played = tqdm(_play(envs, policy, seeds), task.name, episodes, unit="episode", disable=not progress)
        ordered = sorted(played, key=lambda episode: episode.index)
    finally:
        for env in envs:
            env.close()
    return TaskScore.of(task, seed, ordered)


def _play(envs: Sequence[TaskEnv], policy: Policy | BatchPolicy, seeds: dict[int, int]) -> Iterator[PlayedEpisode]:
    """Play the episodes of these seeds, by their indices, in any order."""
    indices = {seed: index for index, seed in seeds.items()}
    begun = time.perf_counter()
    for seed, episode in _play_seeds(envs, policy, list(seeds.values())):
        now = time.perf_counter()
        if episode is None:
            yield PlayedEpisode(index=indices[seed], seed=seed)
        else:
            yield PlayedEpisode(
                index=indices[seed],
                seed=seed,
                total_reward=episode.total_reward,
                score=episode.score,
                success=episode.success,
                cut=not episode.terminated,
                timesteps=len(episode),
                seconds=round(now - begun, 4),
            )
        begun = now


def _play_seeds(
    envs: Sequence[TaskEnv], policy: Policy | BatchPolicy, seeds: Sequence[int]
) -> Iterator[tuple[int, Episode | None]]:
    """Seeds and their episodes; none of a start that the expert does not accept."""
    if isinstance(policy, BatchPolicy):
        for episode in play_batch(envs, policy, seeds):
            yield episode.seed, episode
        return
    for seed in seeds:
        try:
            yield seed, rollout(envs[0], policy, seed, keep_observations=False)
        except ExpertGaveUp:
            yield seed, None


class Player(Protocol):
    """A policy for every task, loaded in the process that is to play; can be pickled and hashed.

    Args:
        num_envs: how many environments it plays at once.
    """

    num_envs: int

    def described(self) -> dict[str, Any]:
        """What decides its actions, as JSON: episodes of an equal one are not played again."""

    def load(self, task: TaskSpec) -> Policy | BatchPolicy:
        """Its policy for a task."""


@dataclass(frozen=True)
class ExpertPlayer:
    """A kind of expert, or "random"."""

    kind: str
    num_envs: int = 1

    @classmethod
    def of(cls, task: TaskSpec, kind: str) -> "ExpertPlayer":
        """Of a kind, or with "expert" the task's own.

        Raises:
            MissingExpertError: if the task has none; here, before any work.
        """
        player = cls(task.expert_name if kind == "expert" else kind)
        player.load(task)
        return player

    def described(self) -> dict[str, Any]:
        return {"policy": self.kind}

    def load(self, task: TaskSpec) -> Policy:
        return load_expert(task, self.kind)


@dataclass(frozen=True)
class Trial:
    """A player that is to play so many episodes of a task."""

    task: TaskSpec
    player: Player
    episodes: int
    seed: int = 0
    max_episode_steps: int | None = None

    def described(self) -> dict[str, Any]:
        """All that decides what happens in its episodes, but for their index."""
        return {
            "task": self.task.name,
            **self.player.described(),
            "base_seed": self.seed,
            "max_episode_steps": self.max_episode_steps,
            "versions": self.versions,
        }

    @property
    def versions(self) -> dict[str, str]:
        return {name: package_version(name) for name in playing_packages(self.task)}


def run_trials(
    trials: Sequence[Trial],
    log: Path,
    *,
    num_workers: int = 1,
    executor: str = "local",
    progress: bool = True,
) -> Iterator[tuple[Trial, TaskScore]]:
    """Play trials; yields each with its score as soon as its last episode is played.

    Args:
        trials: what to play.
        log: file of all episodes, a line of JSON each. What it holds of these trials is not played again.
        num_workers: processes of the executor "local".
        executor: "local" or "ray", see `executors.flat_map_unordered`.
        progress: show a bar.
    """
    descriptions = [trial.described() for trial in trials]
    numbers = {_key(described): number for number, described in enumerate(descriptions)}
    played: list[dict[int, PlayedEpisode]] = [{} for _ in trials]
    for described, episode in read_log(log):
        number = numbers.get(_key(described))
        if number is not None and episode.index < trials[number].episodes:
            played[number][episode.index] = episode

    def score(number: int) -> TaskScore:
        trial = trials[number]
        return TaskScore.of(trial.task, trial.seed, [played[number][index] for index in range(trial.episodes)])

    work = []
    for number, trial in enumerate(trials):
        missing = [index for index in range(trial.episodes) if index not in played[number]]
        # A player of several environments needs many episodes to keep them busy to the end.
        size = 1 if trial.player.num_envs == 1 else 4 * trial.player.num_envs
        work += [(number, trial, tuple(missing[i : i + size])) for i in range(0, len(missing), size)]
        if not missing:
            yield trial, score(number)
    total = sum(len(indices) for _, _, indices in work)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        if log.read_bytes()[-1:] not in (b"", b"\n"):  # a line that was cut off, which would spoil the next
            file.write("\n")
        results = flat_map_unordered(_play_part, work, executor, num_workers)
        for number, episode in tqdm(results, "episodes", total, unit="episode", disable=not progress):
            trial = trials[number]
            file.write(_log_line(descriptions[number], episode))
            file.flush()
            played[number][episode.index] = episode
            if len(played[number]) == trial.episodes:
                yield trial, score(number)


def _key(described: dict[str, Any]) -> str:
    return json.dumps(described, sort_keys=True)


def read_log(log: Path) -> Iterator[tuple[dict[str, Any], PlayedEpisode]]:
    """The episodes of a log, each with what describes its trial."""
    if not log.exists():
        return
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the process ended while it wrote this line
        episode = PlayedEpisode(**{name: record.pop(name) for name in PlayedEpisode.__dataclass_fields__})
        yield record, episode


def forget(log: Path, trials: Sequence[Trial]) -> None:
    """Remove the episodes of these trials from a log."""
    keys = {_key(trial.described()) for trial in trials}
    lines = [_log_line(described, episode) for described, episode in read_log(log) if _key(described) not in keys]
    with whole_file(log) as file:
        file.write("".join(lines).encode())


def _log_line(described: dict[str, Any], episode: PlayedEpisode) -> str:
    return json.dumps({**described, **asdict(episode)}) + "\n"


def _play_part(work: tuple[int, Trial, tuple[int, ...]]) -> Iterator[tuple[int, PlayedEpisode]]:
    number, trial, indices = work
    seeds = {index: episode_seed(trial.task.name, index, trial.seed, purpose="evaluate") for index in indices}
    envs, policy = _prepare(trial.task, trial.player, min(trial.player.num_envs, len(indices)), trial.max_episode_steps)
    for episode in _play(envs, policy, seeds):
        yield number, episode


@lru_cache(maxsize=1)
def _prepare(
    task: TaskSpec, player: Player, num_envs: int, max_episode_steps: int | None
) -> tuple[list[TaskEnv], Policy | BatchPolicy]:
    """Environments and a policy, kept for the next episodes of the same task."""
    envs = [make_env(task, max_episode_steps=max_episode_steps) for _ in range(num_envs)]
    return envs, player.load(task)
