"""Measures what the random policy and the experts reach, for `scores.json`.

Every finished episode is kept in a file beside the scores, so that a measurement goes on where it was interrupted; when
all episodes of a task are there, they become its score.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev

from tqdm import tqdm

from .envs import TaskEnv, make_env
from .executors import map_unordered
from .experts import load_expert
from .rollout import ExpertGaveUp, Policy, episode_seed, rollout
from .scores import MeasuredScore, format_scores, read_scores, reference_scores
from .shards import package_version, playing_packages, whole_file
from .tasks import DOMAINS, TaskSpec, get_task

# These take minutes for a game.
EPISODES = {"planner": 3, "explorer": 3}
DEFAULT_EPISODES = 100


@dataclass(frozen=True)
class Measurement:
    """A policy that is to be measured on one task."""

    task: TaskSpec
    policy: str
    episodes: int
    seed: int

    @property
    def key(self) -> tuple[str, str]:
        return self.task.name, self.policy

    @property
    def versions(self) -> dict[str, str]:
        return {name: package_version(name) for name in playing_packages(self.task)}


@dataclass(frozen=True)
class PlayedEpisode:
    """What is kept of an episode; nothing but its index if the expert gave up its start."""

    task: str
    policy: str
    seed: int
    versions: dict[str, str]
    index: int
    reward: float | None = None
    score: float | None = None
    success: bool | None = None
    cut: bool = False
    timesteps: int = 0
    seconds: float = 0.0


@lru_cache(maxsize=1)
def _players(task: TaskSpec, policy: str) -> tuple[TaskEnv, Policy]:
    return make_env(task), load_expert(task, policy)


def play_one(work: tuple[Measurement, int]) -> PlayedEpisode:
    """Play the episode with an index."""
    measurement, index = work
    task = measurement.task
    about = (*measurement.key, measurement.seed, measurement.versions, index)
    env, policy = _players(task, measurement.policy)
    begun = time.perf_counter()
    try:
        seed = episode_seed(task.name, index, measurement.seed, purpose="evaluate")
        episode = rollout(env, policy, seed, keep_observations=False)
    except ExpertGaveUp:
        return PlayedEpisode(*about)
    return PlayedEpisode(
        *about,
        reward=episode.total_reward,
        score=episode.score,
        success=episode.success,
        cut=not episode.terminated,
        timesteps=len(episode),
        seconds=time.perf_counter() - begun,
    )


def measure(
    measurements: Sequence[Measurement],
    path: Path,
    *,
    num_workers: int = 1,
    executor: str = "local",
    again: bool = False,
    progress: bool = True,
) -> list[MeasuredScore]:
    """Measure policies and keep their scores in a file; those that it holds are not measured again.

    Args:
        measurements: what to measure.
        path: of the file of scores; unfinished measurements are kept beside it.
        num_workers: processes of the executor "local".
        executor: "local" or "ray", see `executors.map_unordered`.
        again: measure again what the file holds.
        progress: show a bar.

    Returns:
        A score for each of the measurements.
    """
    kept = read_scores(path) if path.exists() else {}
    wanted = {measurement.key: measurement for measurement in measurements}
    missing = [measurement for measurement in measurements if again or not _is_kept(measurement, kept)]
    unfinished = path.with_name(f"{path.stem}.unfinished.jsonl")
    played: dict[tuple[str, str], dict[int, PlayedEpisode]] = {measurement.key: {} for measurement in missing}
    for episode in _read_unfinished(unfinished):
        measurement = wanted.get((episode.task, episode.policy))
        if measurement in missing and (episode.seed, episode.versions) == (measurement.seed, measurement.versions):
            played[measurement.key][episode.index] = episode
    work = [(m, i) for m in missing for i in range(m.episodes) if i not in played[m.key]]
    path.parent.mkdir(parents=True, exist_ok=True)

    def finish(measurement: Measurement) -> None:
        episodes = played[measurement.key]
        if all(index in episodes for index in range(measurement.episodes)):
            kept[measurement.key] = summarize(measurement, [episodes[i] for i in range(measurement.episodes)])
            with whole_file(path) as file:
                file.write(format_scores(kept.values()).encode())

    for measurement in missing:
        finish(measurement)
    with unfinished.open("a", encoding="utf-8") as file:
        results = map_unordered(play_one, work, executor, num_workers)
        for episode in tqdm(results, "measuring", len(work), unit="episode", disable=not progress):
            key = (episode.task, episode.policy)
            played[key][episode.index] = episode
            file.write(json.dumps(asdict(episode)) + "\n")
            file.flush()
            finish(wanted[key])
    others = [episode for episode in _read_unfinished(unfinished) if (episode.task, episode.policy) not in wanted]
    with whole_file(unfinished) as file:
        file.writelines(f"{json.dumps(asdict(episode))}\n".encode() for episode in others)
    return [kept[measurement.key] for measurement in measurements]


def _is_kept(measurement: Measurement, kept: dict[tuple[str, str], MeasuredScore]) -> bool:
    score = kept.get(measurement.key)
    return score is not None and (score.episodes + score.dropped_starts, score.seed, score.versions) == (
        measurement.episodes,
        measurement.seed,
        measurement.versions,
    )


def _read_unfinished(path: Path) -> Iterator[PlayedEpisode]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield PlayedEpisode(**json.loads(line))
            except ValueError:
                continue  # the process ended while it wrote this line


def summarize(measurement: Measurement, played: Sequence[PlayedEpisode]) -> MeasuredScore:
    episodes = [episode for episode in played if episode.reward is not None]
    returns = [episode.reward for episode in episodes]
    scores = [episode.score for episode in episodes]
    successes = [episode.success for episode in episodes if episode.success is not None]
    timesteps = sum(episode.timesteps for episode in episodes)
    return MeasuredScore(
        task=measurement.task.name,
        policy=measurement.policy,
        episodes=len(episodes),
        dropped_starts=len(played) - len(episodes),
        cut=sum(episode.cut for episode in episodes),
        seed=measurement.seed,
        return_mean=round(fmean(returns), 4),
        return_std=round(stdev(returns), 4) if len(returns) > 1 else 0.0,
        score_mean=round(fmean(scores), 4),
        score_std=round(stdev(scores), 4) if len(scores) > 1 else 0.0,
        success=fmean(successes) if successes else None,
        timesteps=round(timesteps / len(episodes), 1),
        steps_per_second=round(timesteps / sum(episode.seconds for episode in episodes)),
        versions=measurement.versions,
    )


def plan_measurements(
    tasks: Sequence[TaskSpec], policies: Sequence[str], episodes: int | None, seed: int
) -> list[Measurement]:
    """What to measure; "expert" is each task's own.

    Raises:
        MissingExpertError: if a task has no such expert.
    """
    measurements = []
    for task in tasks:
        for policy in dict.fromkeys(task.expert_name if policy == "expert" else policy for policy in policies):
            load_expert(task, policy)  # fails here, before any work, if there is none
            measurements.append(Measurement(task, policy, episodes or EPISODES.get(policy, DEFAULT_EPISODES), seed))
    return measurements


def score_table(scores: Sequence[MeasuredScore]) -> list[dict[str, str]]:
    """A row of texts for each task and expert: random, published expert, ours."""
    randoms = {score.task: score for score in scores if score.policy == "random"}

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:,.2f}"

    def with_error(score: MeasuredScore | None) -> str:
        return "-" if score is None else f"{score.score_mean:,.2f} ± {score.standard_error:.2f}"

    rows = []
    for score in scores:
        if score.policy == "random":
            continue
        published, is_game = reference_scores(score.task), get_task(score.task).has_images
        reached = published.expert is not None and score.score_mean >= published.expert
        rows.append(
            {
                "task": score.task,
                "random": with_error(randoms.get(score.task)),
                "published expert": text(published.expert),
                "expert": score.policy,
                "score": with_error(score) + (" *" if reached else ""),
                "episodes": f"{score.episodes}" + (f" ({score.cut} cut)" if score.cut and is_game else ""),
                "success": text(score.success),
                "dropped": str(score.dropped_starts),
                "steps/s": f"{score.steps_per_second:,}",
            }
        )
    return rows


def summary_lines(tasks: Sequence[TaskSpec], scores: Sequence[MeasuredScore]) -> list[str]:
    """How many tasks of each domain have an expert that reaches the published one."""
    best: dict[str, MeasuredScore] = {}
    for score in scores:
        if score.policy != "random" and (score.task not in best or score.score_mean > best[score.task].score_mean):
            best[score.task] = score
    lines = []
    for domain in DOMAINS:
        names = [task.name for task in tasks if task.domain == domain and task.name in best]
        if not names:
            continue
        published = {name: reference_scores(name) for name in names}
        lacking = {name: published[name].expert - best[name].score_mean for name in names}
        reached = sum(lack <= 0 for lack in lacking.values())
        nearly = sum(lack <= 2 * best[name].standard_error for name, lack in lacking.items())
        line = f"{domain}: {reached} of {len(names)} reach the published expert (*), {nearly} within 2 standard errors"
        if domain == "atari":
            line += f", {sum(best[name].score_mean >= published[name].human for name in names)} the human score"
        lines.append(line)
    return lines
