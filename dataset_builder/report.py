"""What an evaluation shows: tables, JSON and CSV, plots, and one page with all of it.

evaluation = read_evaluation(Path("jat/evaluation.json"))
write_report(evaluation, Path("jat/report"))
"""

import base64
import csv
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from .evaluation import PlayedEpisode, TaskScore
from .scores import (
    Interval,
    Yardstick,
    expert_yardstick,
    human_yardstick,
    performance_profile,
    reference_scores,
    summarize_tasks,
)
from .shards import whole_file
from .tasks import get_task

EVALUATION, PAGE, TABLE = "evaluation.json", "index.html", "scores.csv"
PLOTS = {
    "tasks.png": "Every task: 0 is a random agent, 1 the expert, a diamond the published JAT",
    "profiles.png": "How many of the episodes reach a share of the expert's score, with 95% bootstrap intervals",
    "learning.png": "Training: the loss of each domain's tasks, and the score in the environments",
}


@dataclass(frozen=True)
class Evaluation:
    """What was played, and by whom.

    Args:
        scores: of each task.
        about: `policy`, its name; `agent`, the options of the `AgentPolicy` that a model was; `command`, that measured
            it; `versions` of what the environments are made of; `max_episode_steps`, after which episodes were cut, or
            None.
    """

    scores: list[TaskScore]
    about: dict[str, Any]

    @property
    def remark(self) -> str | None:
        """What makes its returns other ones than those of whole episodes."""
        steps = self.about["max_episode_steps"]
        return steps and f"Episodes were cut after {steps} timesteps: the returns are less than they would be."

    @property
    def domains(self) -> dict[str, list[TaskScore]]:
        return by_domain(self.scores)


def by_domain(scores: Iterable[Any]) -> dict[str, list[Any]]:
    """Scores of any kind by the domain of their `task`, in the order in which they come."""
    found: dict[str, list[Any]] = {}
    for score in scores:
        found.setdefault(get_task(score.task).domain, []).append(score)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Figures.


def task_figures(score: TaskScore) -> dict[str, Any]:
    """The figures of a task, by name; None where there are none.

    `return` is over the task's `score_horizon`, as the published scores are: for Meta-World over the first 100
    timesteps, with `success` and `whole_return` over the whole episode.
    """
    published, expert, human = reference_scores(score.task), expert_yardstick(score.task), human_yardstick(score.task)
    return {
        "task": score.task,
        "domain": get_task(score.task).domain,
        "episodes": len(score.episodes),
        "dropped": score.dropped_starts,
        "return": score.mean,
        "standard_error": score.standard_error if len(score.episodes) > 1 else None,
        "success": score.success_rate,
        "whole_return": float(np.mean([episode.total_reward for episode in score.episodes])),
        "random": published.random,
        "expert": published.expert,
        "human": published.human,
        "published_jat": published.jat,
        "normalized": _normalized(expert, score.mean),
        "normalized_by": expert and expert.name,
        "human_normalized": _normalized(human, score.mean),
        "published_jat_normalized": _normalized(expert, published.jat),
    }


def _normalized(yardstick: Yardstick | None, score: float | None) -> float | None:
    return None if yardstick is None or score is None else yardstick.normalized(score)


@dataclass(frozen=True, kw_only=True)
class DomainFigures:
    """What the tasks of a domain reach together.

    Args:
        domain: its name.
        yardstick: what the scores are normalised by, "expert" or "human".
        tasks: how many tasks have it.
        statistics: see `scores.summarize_tasks`.
        clipped_mean: the mean of all episodes' scores cut to 0..1.
        published_jat: the mean of the published JAT's normalised scores on the same tasks, where it has any.
    """

    domain: str
    yardstick: str
    tasks: int
    statistics: dict[str, Interval]
    clipped_mean: float
    published_jat: float | None


def domain_figures(evaluation: Evaluation) -> list[DomainFigures]:
    figures = []
    for domain, scores in evaluation.domains.items():
        for name, yardstick_of in (("expert", expert_yardstick), ("human", human_yardstick)):
            measured = [(score, yardstick) for score in scores if (yardstick := yardstick_of(score.task)) is not None]
            if not measured:
                continue
            normalized = [yardstick.normalized(np.array(score.scores)) for score, yardstick in measured]
            published = [_normalized(yardstick, reference_scores(score.task).jat) for score, yardstick in measured]
            known = [value for value in published if value is not None]
            figures.append(
                DomainFigures(
                    domain=domain,
                    yardstick=name,
                    tasks=len(measured),
                    statistics=summarize_tasks(normalized),
                    clipped_mean=float(np.mean([task.clip(0, 1).mean() for task in normalized])),
                    published_jat=float(np.mean(known)) if known else None,
                )
            )
    return figures


# ----------------------------------------------------------------------------------------------------------------------
# Tables.


def score_rows(scores: Sequence[TaskScore]) -> list[dict[str, str]]:
    """The table of an evaluation, ready to print: one dict of texts for each task."""
    rows = []
    for score in scores:
        figures = task_figures(score)
        error = "" if figures["standard_error"] is None else f" ± {figures['standard_error']:.2f}"
        by_other = figures["normalized_by"] not in (None, "published")
        rows.append(
            {
                "task": score.task,
                "episodes": str(figures["episodes"]),
                "return": _text(figures["return"]) + error,
                "success": _text(figures["success"]),
                "random": _text(figures["random"]),
                "expert": _text(figures["expert"]),
                "published JAT": _text(figures["published_jat"]),
                "normalized": _text(figures["normalized"]) + (f" ({figures['normalized_by']})" if by_other else ""),
            }
        )
    return rows


def domain_rows(figures: Sequence[DomainFigures]) -> list[dict[str, str]]:
    """What the tasks of each domain reach together, ready to print."""
    rows = []
    for found in figures:
        statistics = {
            name: f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
            for name, interval in found.statistics.items()
        }
        row = {"domain": found.domain, "normalized by": found.yardstick, "tasks": str(found.tasks), **statistics}
        clipped = {"mean, clipped to 0..1": _text(found.clipped_mean)}
        rows.append({**row, **clipped, "mean of published JAT": _text(found.published_jat)})
    return rows


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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


def format_evaluation(evaluation: Evaluation) -> str:
    """The table of the tasks and that of the domains, as Markdown."""
    tables = (score_rows(evaluation.scores), domain_rows(domain_figures(evaluation)))
    parts = [format_table(rows) for rows in tables if rows]
    return "\n\n".join(parts + ([evaluation.remark] if evaluation.remark else []))


# ----------------------------------------------------------------------------------------------------------------------
# Files.


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON: every episode, and the figures of tasks and domains."""
    record = {
        **evaluation.about,
        "tasks": [{**asdict(score), "figures": task_figures(score)} for score in evaluation.scores],
        "domains": [asdict(figures) for figures in domain_figures(evaluation)],
    }
    with whole_file(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def read_evaluation(path: Path) -> Evaluation:
    """What `write_evaluation` wrote.

    Raises:
        ValueError: if the file is none of these.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scores = []
        for task in record.pop("tasks"):
            del task["figures"]
            episodes = tuple(PlayedEpisode(**episode) for episode in task.pop("episodes"))
            scores.append(TaskScore(**task, episodes=episodes))
        del record["domains"]
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there: `python examples/evaluate.py` writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no evaluation, or one of another version ({error}): evaluate again") from error
    return Evaluation(scores, record)


def write_table(evaluation: Evaluation, path: Path) -> None:
    """Write the figures of all tasks as CSV."""
    rows = [task_figures(score) for score in evaluation.scores]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def write_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    videos: Mapping[str, Path] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write table, plots and page of an evaluation.

    Args:
        evaluation: what was measured.
        folder: where to; made if it is not there.
        videos: by domain; the page holds them.
        history: of the training, as transformers' Trainer keeps it.

    Returns:
        The page: one file that needs no other, nor a network.
    """
    write_table(evaluation, folder / TABLE)
    plots = draw_plots(evaluation, folder, history)
    template = (resources.files(__package__) / "templates" / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    page = environment.from_string(template).render(
        about=evaluation.about,
        remark=evaluation.remark,
        tasks=[task_figures(score) for score in evaluation.scores],
        domains=domain_figures(evaluation),
        plots=[(_data_uri(path, "image/png"), PLOTS[path.name]) for path in plots],
        videos={domain: _data_uri(path, "video/mp4") for domain, path in (videos or {}).items()},
    )
    with whole_file(folder / PAGE) as file:
        file.write(page.encode())
    return folder / PAGE


def _data_uri(path: Path, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _number(value: float | None) -> str:
    """A figure of the page: as many digits as say something."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


# ----------------------------------------------------------------------------------------------------------------------
# Plots.

_COLORS = {"atari": "#c2572b", "babyai": "#2a78b5", "metaworld": "#4a8f3c", "mujoco": "#8250a8"}


def color_of(domain: str) -> str:
    return _COLORS.get(domain, "#666666")


def draw_plots(evaluation: Evaluation, folder: Path, history: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Draw what there is to draw, as PNG; nothing if matplotlib is not installed."""
    if not importlib.util.find_spec("matplotlib"):
        return []
    measured = {
        domain: known
        for domain, scores in evaluation.domains.items()
        if (known := [score for score in scores if expert_yardstick(score.task) is not None])
    }
    figures = []
    if measured:
        figures += [("tasks.png", draw_tasks(measured)), ("profiles.png", draw_profiles(measured))]
    if any("loss" in entry for entry in history):
        figures.append(("learning.png", draw_learning(history)))
    for name, figure in figures:
        with whole_file(folder / name) as file:
            figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return [folder / name for name, _ in figures]


def draw_tasks(domains: Mapping[str, Sequence[TaskScore]]) -> Any:
    """A bar for each task, a panel for each domain."""
    from matplotlib.figure import Figure

    low, high = -0.2, 1.6
    rows = [len(scores) for scores in domains.values()]
    figure = Figure(figsize=(8, 0.9 * len(rows) + 0.19 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(rows), squeeze=False, height_ratios=[count + 1.5 for count in rows])[:, 0]
    for axes, (domain, scores) in zip(panels, domains.items(), strict=True):
        figures = [task_figures(score) for score in scores]
        normalized = np.array([figure["normalized"] for figure in figures])
        positions = range(len(figures))
        axes.barh(positions, normalized.clip(low, high), color=color_of(domain), height=0.7)
        for position, (value, task) in enumerate(zip(normalized, figures, strict=True)):
            if value > high:
                axes.text(high - 0.01, position, f"{value:.1f}", color="white", ha="right", va="center", fontsize=7)
            if (published := task["published_jat_normalized"]) is not None:
                axes.plot(np.clip(published, low, high), position, "D", color="black", markersize=3)
        for line in (0, 1):
            axes.axvline(line, color="gray", linewidth=0.7)
        axes.set_yticks(positions, [task["task"].removeprefix(f"{domain}-") for task in figures], fontsize=7)
        axes.set_ylim(len(figures) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.set_title(domain, loc="left", fontsize=9, fontweight="bold")
        axes.tick_params(labelbottom=axes is panels[-1])
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("0: random, 1: expert, ◆ published JAT")
    return figure


def draw_profiles(domains: Mapping[str, Sequence[TaskScore]]) -> Any:
    """A line for each domain."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 1.5, 151)
    for domain, scores in domains.items():
        normalized = [expert_yardstick(score.task).normalized(np.array(score.scores)) for score in scores]
        values, lows, highs = performance_profile(normalized, thresholds)
        axes.plot(thresholds, values, color=color_of(domain), label=domain)
        axes.fill_between(thresholds, lows, highs, color=color_of(domain), alpha=0.2, linewidth=0)
    axes.axvline(1, color="gray", linewidth=0.7)
    axes.set(xlim=(0, 1.5), ylim=(0, 1.02), xlabel="score, 0: random, 1: expert", ylabel="share of the episodes above")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_learning(history: Sequence[Mapping[str, Any]]) -> Any:
    """The losses of each domain's tasks, averaged; and the score in environments, if any was measured."""
    from matplotlib.figure import Figure

    scores = [(entry["step"], entry["eval_score"]) for entry in history if "eval_score" in entry]
    figure = Figure(figsize=(8, 5.5 if scores else 3.5), layout="constrained")
    panels = figure.subplots(2 if scores else 1, sharex=True, squeeze=False)[:, 0]
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        losses: dict[str, list[float]] = {}
        for name, value in entry.items():
            if name.startswith("loss/"):
                losses.setdefault(get_task(name.removeprefix("loss/")).domain, []).append(value)
        for domain, values in losses.items():
            points.setdefault(domain, []).append((entry["step"], float(np.mean(values))))
    for domain, found in sorted(points.items()):
        panels[0].plot(*zip(*found, strict=True), color=color_of(domain), label=domain, linewidth=1)
    panels[0].set(yscale="log", ylabel="loss")
    panels[0].legend(frameon=False)
    if scores:
        panels[1].plot(*zip(*scores, strict=True), "o-", color="black", markersize=3)
        panels[1].set(ylim=(0, 1.02), ylabel="score, 1: expert")
    panels[-1].set_xlabel("step")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
