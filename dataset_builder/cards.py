"""The cards of data sets and models: templates of this package, filled by what was measured."""

import json
import math
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from datasets import DatasetInfo, List, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from safetensors import safe_open

from .episodes import TIMESTEPS_PER_ROW, task_features
from .experts import EXPERTS
from .pictures import ASSETS, draw_frames, draw_returns
from .report import (
    EVALUATION,
    PAGE,
    PLOTS,
    Evaluation,
    domain_figures,
    domain_rows,
    format_table,
    read_evaluation,
    score_rows,
    task_figures,
)
from .scores import reference_scores
from .shards import MANIFEST, is_local, read_manifest, whole_file
from .tasks import DOMAINS, TaskSpec, select_tasks

REPORT, REPLAY, FRAME, TRAINING = "report", "replay.mp4", "frame.png", "training.json"
TEXT_EVALUATION = "text_evaluation.json"
# Where results belong that come from data of no repository.
PUBLISHED_DATASET = "jat-project/jat-dataset"
_TEMPLATES = resources.files(__package__) / "templates"


def write_dataset_card(folder: Path) -> Path:
    """Write `README.md` of a folder of data sets, from the manifests of its tasks, with pictures in `assets`."""
    manifests = {path.parent.name: read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    if is_local(folder):
        draw_returns(folder / ASSETS / "returns.png", manifests)
        draw_frames(folder, manifests)
    pictures = sorted(f"{ASSETS}/{path.name}" for path in (folder / ASSETS).glob("*.png"))
    path = folder / "README.md"
    with whole_file(path) as stream:
        stream.write(dataset_card(manifests, pictures, "PATH OF THIS FOLDER").encode())
    return path


def dataset_card(manifests: dict[str, dict[str, Any]], pictures: list[str], address: str) -> str:
    """The card of data sets.

    Its metadata tell `datasets` the configurations, their features, and their files, by a pattern that only a whole
    set of shards fits: while more are written or sent, readers see the ones that were there before.

    Args:
        manifests: by task.
        pictures: of the figure and of the domains, beside the card.
        address: the folder or repository, as `load_dataset` takes it.
    """
    card_data = DatasetCardData(
        license="apache-2.0",
        task_categories=["reinforcement-learning", "robotics"],
        tags=["imitation-learning", "jat"],
        pretty_name="JAT data set",
    )
    tasks = {name: TaskSpec.from_description(manifest["task"]) for name, manifest in manifests.items()}
    infos, configs = {}, {}
    for name, manifest in manifests.items():
        splits = {split: SplitInfo(split, sizes["bytes"], sizes["rows"]) for split, sizes in manifest["splits"].items()}
        infos[name] = DatasetInfo(
            config_name=name,
            features=task_features(tasks[name]),
            splits=SplitDict(splits),
            download_size=manifest["file_bytes"],
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
        configs[name] = {
            "data_files": [
                {"split": split, "path": f"{name}/{split}-*-of-{sizes['files']:05d}.parquet"}
                for split, sizes in manifest["splits"].items()
            ]
        }
    DatasetInfosDict(infos).to_dataset_card_data(card_data)
    MetadataConfigs(configs).to_dataset_card_data(card_data)
    summaries = [_summary(tasks[name], manifest) for name, manifest in manifests.items()]
    with resources.as_file(_TEMPLATES / "dataset_card.md") as template:
        card = DatasetCard.from_template(
            card_data,
            template_path=str(template),
            address=address,
            tasks=[summary for summary in summaries if summary["domain"] != "text"],
            texts=[summary for summary in summaries if summary["domain"] == "text"],
            kinds=_kinds(tasks.values()),
            commands=_commands(summaries),
            noisy=[summary["name"] for summary in summaries if summary["recipe"]["action_noise"]],
            taught=[summary["name"] for summary in summaries if "student" in summary["recipe"]],
            has_parts=any(task.has_images for task in tasks.values()),
            timesteps_per_row=TIMESTEPS_PER_ROW,
            pictures=pictures,
            versions=_versions(manifests),
        )
    return str(card)


def _summary(task: TaskSpec, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the card says of a task."""
    reference = reference_scores(task.name)
    count = len(manifest.get("episodes", ())) or manifest.get("rows")
    return {
        **manifest,
        "name": task.name,
        "domain": task.domain,
        "instruction": task.instruction,
        "count": count,
        "random": reference.random,
        "published": reference.expert,
        "score": fmean(record["score"] for record in manifest["episodes"]) if "episodes" in manifest else None,
    }


def _commands(summaries: list[dict[str, Any]]) -> list[str]:
    """What builds the same data: a command for all tasks that were built with the same options."""
    tasks_by_options: dict[tuple[str, str], list[TaskSpec]] = {}
    for summary in summaries:
        task, recipe = TaskSpec.from_description(summary["task"]), summary["recipe"]
        options = f"--episodes {summary['count']}"
        if task.domain != "text":
            options += f" --seed {recipe['seed']}"
            if recipe["expert"] in EXPERTS:
                options += f" --expert {recipe['expert']}"
            if recipe["max_episode_steps"] is not None:
                options += f" --max-episode-steps {recipe['max_episode_steps']}"
            if recipe["action_noise"]:
                options += f" --action-noise {recipe['action_noise']}"
        program = "examples/dagger.py --model STUDENT" if "student" in recipe else "-m dataset_builder build"
        tasks_by_options.setdefault((program, options), []).append(task)
    return [
        f"python {program} --tasks {' '.join(_patterns(tasks))} {options} --output DIR"
        for (program, options), tasks in tasks_by_options.items()
    ]


def _patterns(tasks: list[TaskSpec]) -> list[str]:
    """The tasks by name, whole domains by theirs."""
    names = {task.name for task in tasks}
    patterns = dict.fromkeys(
        task.domain if task.domain in DOMAINS and names >= {t.name for t in select_tasks(task.domain)} else task.name
        for task in tasks
    )
    return list(patterns)


def _kinds(tasks: Iterable[TaskSpec]) -> list[dict[str, Any]]:
    """The sets of columns that there are, with the domains or text subsets that have them."""
    kinds: dict[tuple, list[str]] = {}
    for task in tasks:
        columns = tuple((column, _type_name(feature)) for column, feature in task_features(task).items())
        kinds.setdefault(columns, []).append(task.name if task.domain == "text" else task.domain)
    return [{"owners": sorted(set(owners)), "columns": columns} for columns, owners in kinds.items()]


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    return feature.dtype if isinstance(feature, Value) else "image"


def _versions(manifests: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The versions of all tasks; several of one package side by side."""
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in manifest["versions"].items():
            versions.setdefault(package, set()).add(version)
    return {package: " and ".join(sorted(found)) for package, found in sorted(versions.items())}


def write_model_card(folder: Path, address: str | None = None) -> Path:
    """Write `README.md` of a model's folder, and its results as the Hub's leaderboards read them.

    They say what `evaluation.json`, `text_evaluation.json`, `training.json`, the report and the replay of the folder
    say, as far as they are there.

    Args:
        folder: where the model was saved.
        address: the folder or repository, as `from_pretrained` takes it.

    Raises:
        ValueError: if the folder holds no model.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model: expected config.json and what else `save_pretrained` writes")
    evaluation = read_evaluation(folder / EVALUATION) if (folder / EVALUATION).exists() else None
    trainings, texts = _trainings(_read_json(folder / TRAINING)), _read_json(folder / TEXT_EVALUATION)
    data = dict.fromkeys(name for training in trainings for name in training["data"])
    repositories = [name for name in data if "/" in name and not Path(name).exists()]
    dataset = repositories[0] if repositories else None
    figures = [task_figures(score) for score in evaluation.scores] if evaluation else []
    rows = domain_rows(domain_figures(evaluation)) if evaluation else []
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="reinforcement-learning",
        tags=["jat", "reinforcement-learning", "imitation-learning", "generalist-agent", "robotics"],
        datasets=repositories or None,
        model_name=folder.resolve().name if address is None else address.partition("/")[2],
        eval_results=[result for task in figures for result in _results(task, dataset)] or None,
        widget=_widget(
            {task for training in trainings for task in training["tasks"]},
            address if (folder / REPORT / FRAME).exists() else None,
        ),
    )
    with resources.as_file(_TEMPLATES / "model_card.md") as template:
        card = ModelCard.from_template(
            card_data,
            template_path=str(template),
            address=address or "PATH OF THIS FOLDER",
            parameters=_count_parameters(folder),
            task=figures[0]["task"] if figures else "metaworld-reach",
            evaluation=evaluation,
            domain_table=format_table(rows) if rows else None,
            task_table=format_table(score_rows(evaluation.scores)) if evaluation else None,
            weak=[task["task"] for task in figures if task["normalized"] is not None and task["normalized"] < 0.5],
            prompted=bool(evaluation and evaluation.about.get("agent", {}).get("prompted")),
            text_table=format_table(_text_rows(texts)) if texts else None,
            texts=texts,
            trainings=trainings,
            has_code=(folder / "modeling_jat.py").exists(),
            plots={name: caption for name, caption in PLOTS.items() if (folder / REPORT / name).exists()},
            page=f"{REPORT}/{PAGE}" if (folder / REPORT / PAGE).exists() else None,
            replay=(folder / REPLAY).exists(),
        )
    if figures:
        write_leaderboard(folder, evaluation, dataset)
    path = folder / "README.md"
    with whole_file(path) as stream:
        stream.write(str(card).encode())
    return path


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _text_rows(texts: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """What was measured on held-out rows of text subsets, ready to print."""
    return [
        {
            "subset": name,
            "rows": str(found["rows"]),
            "perplexity": f"{found['perplexity']:.2f}",
            "next token right": f"{found['next_token_accuracy']:.2f}",
            "written exactly, from the image": f"{found['written_exactly']:.2f}" if "written_exactly" in found else "-",
        }
        for name, found in texts.items()
    ]


def write_leaderboard(folder: Path, evaluation: Evaluation, dataset: str | None) -> None:
    """Write the tasks' normalised scores in the folder from which the Hub's leaderboards take them."""
    entries = [
        EvalResultEntry(
            dataset_id=dataset or PUBLISHED_DATASET,
            task_id=figures["task"],
            value=round(figures["normalized"], 4),
            notes=f"{figures['episodes']} episodes; 0: random, 1: expert",
        )
        for figures in map(task_figures, evaluation.scores)
        if figures["normalized"] is not None
    ]
    with whole_file(folder / EVAL_RESULTS_FOLDER / "jat.yaml") as stream:
        stream.write(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode())


def _results(figures: dict[str, Any], dataset: str | None) -> Iterator[EvalResult]:
    """A task's figures for the card's `model-index`."""
    for key, name in (
        ("return", "Return"),
        ("normalized", "Return, expert-normalized"),
        ("human_normalized", "Return, human-normalized"),
        ("success", "Success rate"),
    ):
        if figures[key] is not None:
            yield EvalResult(
                task_type="reinforcement-learning",
                task_name="Reinforcement Learning",
                dataset_type=dataset or PUBLISHED_DATASET,
                dataset_name=figures["task"],
                dataset_config=figures["task"],
                metric_type={"return": "mean_reward"}.get(key, key),
                metric_name=name,
                metric_value=round(figures[key], 4),
            )


def _trainings(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The trainings of a model, each of which went on from the one before it."""
    return [*_trainings(record.get("before")), record] if record else []


def _widget(tasks: set[str], repository: str | None) -> list[dict[str, Any]] | None:
    """What a visitor may try of a model that was trained on texts; captions of a frame in the repository."""
    widget = []
    if {"wikipedia", "oscar"} & tasks:
        widget.append({"example_title": "Text", "text": "The planet Mars is"})
    if {"ok-vqa", "conceptual-captions"} & tasks and repository:
        source = f"https://huggingface.co/{repository}/resolve/main/{REPORT}/{FRAME}"
        widget.append({"example_title": "Caption", "src": source})
    return widget or None


def _count_parameters(folder: Path) -> int:
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count
