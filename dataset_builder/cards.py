"""The cards of data sets and models: templates of this package, filled by what was measured."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from .episodes import task_features
from .tasks import get_task

_TEMPLATES = resources.files(__package__) / "templates"


def write_dataset_card(folder: Path) -> Path:
    """Write `README.md` of a folder of data sets, from the manifests of its tasks.

    Its metadata tell `datasets` the configurations, their files and their features.
    """
    manifests = {
        path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/manifest.json"))
    }
    card_data = DatasetCardData(
        license="apache-2.0", task_categories=["reinforcement-learning", "robotics"], tags=["imitation-learning", "jat"]
    )
    infos = {name: DatasetInfo(features=task_features(get_task(name)), config_name=name) for name in manifests}
    DatasetInfosDict(infos).to_dataset_card_data(card_data)
    configs = {
        name: {"data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in manifest["splits"]]}
        for name, manifest in manifests.items()
    }
    MetadataConfigs(configs).to_dataset_card_data(card_data)
    with resources.as_file(_TEMPLATES / "dataset_card.md") as template:
        card = DatasetCard.from_template(
            card_data, template_path=str(template), tasks=[_summary(name, m) for name, m in manifests.items()]
        )
    path = folder / "README.md"
    card.save(path)
    return path


def _summary(name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    episodes = manifest["episodes"]
    successes = [record["success"] for record in episodes if record["success"] is not None]
    return {
        "name": name,
        "instruction": get_task(name).instruction,
        "recipe": manifest["recipe"],
        "episodes": len(episodes),
        "timesteps": sum(record["timesteps"] for record in episodes),
        "mean_return": sum(record["return"] for record in episodes) / len(episodes),
        "success": sum(successes) / len(successes) if successes else None,
        "dropped_starts": sum(record["dropped_starts"] for record in episodes),
        "versions": manifest["versions"],
    }


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
