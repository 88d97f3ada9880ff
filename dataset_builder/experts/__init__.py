"""Experts: `load_expert(task)` gives the policy that makes a task's data.

Each kind of expert is a module of its own, imported only when used, with one function `load(task)`. The table says
which kind is a task's own; a task of a user's may bring its expert itself, as a function or a policy.
"""

import importlib
from collections.abc import Callable

import gymnasium

from ..rollout import Action, Observation, Policy
from ..tasks import TaskSpec, get_task

EXPERTS = {
    "bot": "the planning bot that comes with minigrid, for BabyAI",
    "scripted": "the scripted policies that come with metaworld",
    "tuned": "those scripts in a hurry: they earn more in the first 100 timesteps",
    "mpc": "model-predictive control on the simulator, for Meta-World and mujoco-standup",
    "network": "small networks trained by reinforcement learning, for MuJoCo and games of Atari",
    "planner": "rolling-horizon evolution with the emulator as its model, for Atari",
    "explorer": "an archive of emulator states, for games of Atari whose reward comes late",
    "hub": "the published experts, from the Hub, for Atari, MuJoCo and Meta-World",
    "random": "uniformly random actions, for any task",
}


class MissingExpertError(LookupError):
    """There is no expert for a task, or what it needs is not there."""


class FunctionPolicy:
    """A function from observation to action as a policy."""

    def __init__(self, function: Callable[[Observation], Action]) -> None:
        self.function = function

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        pass

    def act(self, observation: Observation, reward: float | None) -> Action:
        return self.function(observation)


def load_expert(task: str | TaskSpec, source: str | None = None) -> Policy:
    """The expert of a task.

    Args:
        task: a row of the table or its name.
        source: a kind of expert, one of `EXPERTS`; the task's own by default.

    Raises:
        ValueError: if the task or the kind of expert is unknown.
        MissingExpertError: if the task has none, or what the expert needs is not there.
    """
    task = get_task(task) if isinstance(task, str) else task
    if not (task.expert is None or isinstance(task.expert, str)) and source in (None, task.expert_name):
        expert = task.expert() if isinstance(task.expert, type) else task.expert
        return expert if isinstance(expert, Policy) else FunctionPolicy(expert)
    source = source or task.expert
    if source is None:
        raise MissingExpertError(f"{task.name} has no expert of its own: name one of {', '.join(EXPERTS)}")
    if source not in EXPERTS:
        raise ValueError(f"unknown expert {source!r} for {task.name}: expected one of {', '.join(EXPERTS)}")
    return importlib.import_module(f".{source}", __package__).load(task)
