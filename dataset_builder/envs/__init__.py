"""Environments: `make_env(task)` for any task of the table.

Each domain is a module of its own, imported only when one of its tasks is made. Its `make(task, **kwargs)` returns a
`gymnasium.Env` whose observations are dicts with the keys `task.observation_keys`:

| key | space |
| --- | --- |
| continuous_observation | Box, float32, shape (size,) |
| discrete_observation | MultiDiscrete, int64, shape (size,) |
| text_observation | Text |
| image_observation | Box, uint8, shape (height, width, channels) |

Actions are a float32 Box of shape (size,) or a Discrete. Where an environment knows success, every step's info holds
it as the bool `info["success"]`.
"""

import ctypes.util
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ..tasks import TaskSpec, get_task
from .noise import ActionNoise


class TaskEnv(gymnasium.Wrapper):
    """The outermost wrapper of every environment: it knows its task."""

    def __init__(self, env: gymnasium.Env, task: TaskSpec) -> None:
        super().__init__(env)
        self.task = task


def make_env(
    task: str | TaskSpec, *, max_episode_steps: int | None = None, action_noise: float = 0.0, **kwargs: Any
) -> TaskEnv:
    """Make the environment of a task.

    Args:
        task: a row of the table or its name.
        max_episode_steps: truncate episodes after so many timesteps, if that is sooner than the task's horizon.
        action_noise: execute the actions of about every second episode with noise of this standard deviation, in
            halves of the range of each action, see `ActionNoise`.
        kwargs: handed to the domain, such as `render_mode="rgb_array"`.

    Raises:
        ValueError: if the task is unknown or has no environment, or noise is asked for on discrete actions.
        RuntimeError: if `render_mode` asks for frames that this machine cannot render.
    """
    task = get_task(task) if isinstance(task, str) else task
    if task.domain == "text":
        raise ValueError(f"{task.name} is a text subset and has no environment")
    domain = importlib.import_module(f".{task.domain}", __package__)
    env = domain.make(task, **kwargs)
    if max_episode_steps is not None:
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    if action_noise:
        env = ActionNoise(env, action_noise)
    return TaskEnv(env, task)


def task_columns(task: TaskSpec) -> tuple[str, ...]:
    """The columns of a task's data set, from the spaces of its environment.

    Raises:
        ValueError: if the environment has spaces that JAT does not know.
    """
    with make_env(task) as env:
        observations = [f"{key}s" for key in sorted(env.observation_space, reverse=True)]  # a text first, as in BabyAI
        actions = (
            "discrete_actions" if isinstance(env.action_space, gymnasium.spaces.Discrete) else "continuous_actions"
        )
    return (*observations, actions, "rewards")


def make_vec_env(task: str | TaskSpec, num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """`num_envs` environments of one task as a gymnasium vector environment.

    Rows do not reset by themselves: reset those that ended with
    `envs.reset(seed=..., options={"reset_mask": terminated | truncated})`, each from a seed of its choice.
    """
    return SyncVectorEnv(
        [lambda: make_env(task, **kwargs)] * num_envs, copy=False, autoreset_mode=AutoresetMode.DISABLED
    )


def choose_mujoco_renderer() -> None:
    """Let MuJoCo render without a screen where it can. To be called before `mujoco` is imported."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    if headless and (glfw := importlib.util.find_spec("glfw")):
        # Else glfw, which gymnasium imports, tries every library that it finds in a process of its own.
        bundled = Path(glfw.origin).parent / "x11" / "libglfw.so"
        if bundled.exists():
            os.environ.setdefault("PYGLFW_LIBRARY", str(bundled))
    if headless and "MUJOCO_GL" not in os.environ:
        for library, backend in (("OSMesa", "osmesa"), ("EGL", "egl")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = backend
                return


def rendering_problem(task: str | TaskSpec) -> str | None:
    """What keeps this machine from rendering a task, or None where it renders."""
    try:
        with make_env(task, render_mode="rgb_array") as env:
            env.reset(seed=0)
            env.render()
    except Exception as error:  # MuJoCo, its OpenGL backends and gymnasium raise errors of many kinds
        return f"{type(error).__name__}: {error}"
    return None
