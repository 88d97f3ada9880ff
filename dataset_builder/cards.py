"""The cards of data sets and models: templates of this package, filled by what was measured."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import DatasetInfo, List, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from .episodes import TIMESTEPS_PER_ROW, task_features
from .experts import EXPERTS
from .pictures import ASSETS, draw_frames, draw_returns
from .scores import reference_scores
from .shards import MANIFEST, is_local, read_manifest, whole_file
from .tasks import DOMAINS, TaskSpec, select_tasks

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
    tasks_by_options: dict[str, list[TaskSpec]] = {}
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
        tasks_by_options.setdefault(options, []).append(task)
    return [
        f"python -m dataset_builder build --tasks {' '.join(_patterns(tasks))} {options} --output DIR"
        for options, tasks in tasks_by_options.items()
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


def write_model_card(folder: Path, **fields: Any) -> Path:
    """Write `README.md` of a model's folder.

    Args:
        folder: where the model was saved.
        fields: what the template names: `results`, `command`, `parameters`, `datasets`, `replay`.
    """
    card_data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="reinforcement-learning",
        tags=["jat", "reinforcement-learning", "imitation-learning", "robotics"],
    )
    with resources.as_file(_TEMPLATES / "model_card.md") as template:
        card = ModelCard.from_template(card_data, template_path=str(template), **fields)
    path = folder / "README.md"
    card.save(path)
    return path
