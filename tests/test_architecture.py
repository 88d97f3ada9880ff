"""The house itself: who imports whom, and the names that run through all of it."""

import ast
import inspect
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dataset_builder import select_tasks
from dataset_builder.episodes import COLUMN_TYPES
from modeling_jat import JatModelForCausalLM
from processing_jat import JatProcessor

ROOT = Path(__file__).parent.parent


def imported_packages(path):
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("modeling_jat", {"processing_jat", "dataset_builder", "gymnasium", "datasets"}),
        ("processing_jat", {"dataset_builder", "gymnasium", "datasets"}),
        ("dataset_builder", {"modeling_jat", "processing_jat", "torch"}),
    ],
)
def test_import_directions(package, forbidden):
    for path in (ROOT / package).rglob("*.py"):
        reads_checkpoints = {"torch"} if path.name == "hub.py" else set()  # of the published experts
        assert not imported_packages(path) & (forbidden - reads_checkpoints), path


def test_only_the_processor_package_knows_the_model():
    importers = [
        path.name for path in (ROOT / "processing_jat").glob("*.py") if "modeling_jat" in imported_packages(path)
    ]
    assert importers == ["__init__.py"]


@pytest.mark.parametrize(
    ("package", "heavy"),
    [("modeling_jat", ["gymnasium", "datasets"]), ("dataset_builder", ["torch", "mujoco", "ale_py", "minigrid"])],
)
def test_light_imports(package, heavy):
    code = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_157_tasks_and_4_text_subsets():
    tasks = select_tasks("all")
    assert Counter(task.domain for task in tasks) == {"atari": 57, "babyai": 39, "metaworld": 50, "mujoco": 11}
    assert len({task.name for task in tasks}) == len({task.env_id for task in tasks}) == 157
    assert [task.name for task in select_tasks("text")] == ["conceptual-captions", "ok-vqa", "oscar", "wikipedia"]
    assert all(task.instruction for task in tasks)


def test_columns_are_the_processors_keywords_and_the_models_arguments():
    keywords = inspect.signature(JatProcessor.__call__).parameters
    arguments = inspect.signature(JatModelForCausalLM.forward).parameters
    columns = {column for task in select_tasks(["all", "text"]) for column in task.columns}
    assert columns == set(COLUMN_TYPES)
    assert columns <= set(keywords)
    # Text becomes tokens: those of a text observation stand behind the discrete observation's values.
    assert columns - {"text_observations", "text", "images"} <= set(arguments)
    assert set(JatProcessor.from_texts(["a"], 257).model_input_names) <= set(arguments)
