"""Measures what the random policy and the experts reach, for `scores.json`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from .evaluation import ExpertPlayer, TaskScore, Trial, forget, run_trials
from .report import by_domain, format_table
from .scores import MeasuredScore, format_scores, read_scores, reference_scores
from .shards import lock_folder, whole_file
from .tasks import TaskSpec, get_task, select_tasks

# These take minutes for a game.
EPISODES = {"planner": 3, "explorer": 3}
DEFAULT_EPISODES = 100


def plan_trials(tasks: Sequence[TaskSpec], kinds: Sequence[str], episodes: int | None, seed: int) -> list[Trial]:
    """What to measure; "expert" is each task's own.

    Raises:
        MissingExpertError: if a task has no such expert.
    """
    trials = []
    for task in tasks:
        for player in dict.fromkeys(ExpertPlayer.of(task, kind) for kind in kinds):
            trials.append(Trial(task, player, episodes or EPISODES.get(player.kind, DEFAULT_EPISODES), seed))
    return trials


def measure(
    trials: Sequence[Trial],
    path: Path,
    *,
    num_workers: int = 1,
    executor: str = "local",
    again: bool = False,
    progress: bool = True,
) -> list[MeasuredScore]:
    """Measure experts and keep their scores in a file; those that it holds are not measured again.

    Args:
        trials: of experts, see `plan_trials`.
        path: of the file of scores; the episodes of unfinished measurements are kept beside it.
        num_workers: processes of the executor "local".
        executor: "local" or "ray", see `executors.flat_map_unordered`.
        again: measure again what the file holds.
        progress: show a bar.

    Returns:
        A score for each of the trials.

    Raises:
        ValueError: if another process measures or builds in the file's folder.
    """
    options = {"num_workers": num_workers, "executor": executor, "progress": progress}
    with lock_folder(path.parent):
        kept = read_scores(path) if path.exists() else {}
        missing = [trial for trial in trials if again or not _is_kept(trial, kept)]
        unfinished = path.with_name(f"{path.stem}.unfinished.jsonl")
        for trial, score in run_trials(missing, unfinished, **options):
            kept[_key(trial)] = summarize(trial, score)
            with whole_file(path) as file:
                file.write(format_scores(kept.values()).encode())
        forget(unfinished, missing)
    return [kept[_key(trial)] for trial in trials]


def _key(trial: Trial) -> tuple[str, str]:
    return trial.task.name, trial.player.kind


def _is_kept(trial: Trial, kept: dict[tuple[str, str], MeasuredScore]) -> bool:
    score = kept.get(_key(trial))
    return score is not None and (score.episodes + score.dropped_starts, score.seed, score.versions) == (
        trial.episodes,
        trial.seed,
        trial.versions,
    )


def summarize(trial: Trial, score: TaskScore) -> MeasuredScore:
    returns = [episode.total_reward for episode in score.episodes]
    timesteps = sum(episode.timesteps for episode in score.episodes)
    return MeasuredScore(
        task=score.task,
        policy=trial.player.kind,
        episodes=len(score.episodes),
        dropped_starts=score.dropped_starts,
        cut=sum(episode.cut for episode in score.episodes),
        seed=score.seed,
        return_mean=round(fmean(returns), 4),
        return_std=round(stdev(returns), 4) if len(returns) > 1 else 0.0,
        score_mean=round(fmean(score.scores), 4),
        score_std=round(stdev(score.scores), 4) if len(score.scores) > 1 else 0.0,
        success=score.success_rate,
        timesteps=round(timesteps / len(score.episodes), 1),
        steps_per_second=round(timesteps / sum(episode.seconds for episode in score.episodes)),
        versions=trial.versions,
    )


def describe_scores(scores: Sequence[MeasuredScore]) -> str:
    """A Markdown table for each domain, and how many of its tasks reach the published expert."""
    parts = []
    for found in by_domain(scores).values():
        if rows := _rows(found):
            parts += [format_table(rows), _summary(found)]
    return "\n\n".join(part for part in parts if part)


def write_page(scores: Sequence[MeasuredScore], path: Path) -> None:
    """Write scores as a page for people, in the order of the tasks."""
    ordered = [score for task in select_tasks("all") for score in scores if score.task == task.name]
    path.write_text(PAGE + describe_scores(ordered) + "\n", encoding="utf-8")


PAGE = """# Scores

What random actions and the experts of this package reach on starts that are in no data set: the mean and its standard error, beside the published expert (Gallouédec et al. 2024, arXiv 2402.09844), which a star says is reached. Meta-World's scores are returns over the first 100 timesteps, as the published ones, and success is counted within 500. Steps per second are those of expert and environment in one process, on a machine that did other work too.

`python -m dataset_builder score --tasks all --page SCORES.md` measures what [`scores.json`](scores.json) lacks, and writes this page; the file has standard deviations, seeds and versions besides.

"""  # noqa: E501


def _rows(scores: Sequence[MeasuredScore]) -> list[dict[str, str]]:
    """A row of texts for each task and expert of a domain: random, published expert, ours."""
    randoms = {score.task: score for score in scores if score.policy == "random"}

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:,.2f}"

    def with_error(score: MeasuredScore | None) -> str:
        return "-" if score is None else f"{score.score_mean:,.2f} ± {score.standard_error:,.2f}"

    rows = []
    for score in scores:
        if score.policy == "random":
            continue
        published, is_game = reference_scores(score.task), get_task(score.task).domain == "atari"
        reached = published.expert is not None and score.score_mean >= published.expert
        rows.append(
            {
                "task": score.task,
                "random": with_error(randoms.get(score.task)),
                **({"human": text(published.human)} if is_game else {}),
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


def _summary(scores: Sequence[MeasuredScore]) -> str | None:
    """How many tasks of a domain have an expert that reaches the published one; None where none is published."""
    best: dict[str, MeasuredScore] = {}
    for score in scores:
        if score.policy != "random" and (score.task not in best or score.score_mean > best[score.task].score_mean):
            best[score.task] = score
    published = {name: reference_scores(name) for name in best}
    lacking = {
        name: published[name].expert - score.score_mean
        for name, score in best.items()
        if published[name].expert is not None
    }
    if not lacking:
        return None
    reached = sum(lack <= 0 for lack in lacking.values())
    nearly = sum(lack <= 2 * best[name].standard_error for name, lack in lacking.items())
    domain = get_task(next(iter(best))).domain
    line = f"{domain}: {reached} of {len(best)} reach the published expert (*), {nearly} within 2 standard errors"
    if domain == "atari":
        line += f", {sum(score.score_mean >= published[name].human for name, score in best.items())} the human score"
    return line
