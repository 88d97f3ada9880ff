"""Experts: `load_expert(task)` gives the policy that makes a task's data.

Each kind of expert is a module of its own, imported only when used, with one function `load(task)`. The table says
which kind is a task's own.
"""

import importlib

from ..rollout import Policy
from ..tasks import TaskSpec, get_task

EXPERTS = {
    "bot": "the planning bot that comes with minigrid, for BabyAI",
    "scripted": "the scripted policies that come with metaworld",
    "network": "small networks trained by reinforcement learning, for MuJoCo",
    "planner": "rolling-horizon evolution with the emulator as its model, for Atari",
    "random": "uniformly random actions, for any task",
}


class MissingExpertError(LookupError):
    """There is no expert for a task, or what it needs is not there."""


def load_expert(task: str | TaskSpec, name: str | None = None) -> Policy:
    """The expert of a task.

    Args:
        task: a row of the table or its name.
        name: a kind of expert, one of `EXPERTS`; the task's own by default.

    Raises:
        ValueError: if the task or the kind of expert is unknown.
        MissingExpertError: if the task has none, or what the expert needs is not there.
    """
    task = get_task(task) if isinstance(task, str) else task
    name = name or task.expert
    if name is None:
        raise MissingExpertError(f"{task.name} has no expert of its own: name one of {', '.join(EXPERTS)}")
    if name not in EXPERTS:
        raise ValueError(f"unknown expert {name!r} for {task.name}: expected one of {', '.join(EXPERTS)}")
    return importlib.import_module(f".{name}", __package__).load(task)
