"""Meta-World: a Sawyer arm with 50 manipulation tasks, a vector of 39 values and 4 continuous actions.

The goal is visible (the last three values) and drawn anew at every reset. Rewards are those of version 2, as in the
published data. An episode always lasts 500 timesteps.
"""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from ..tasks import TaskSpec
from . import choose_mujoco_renderer
from .spaces import observe_vector


class _SeededGoal(gymnasium.Wrapper):
    """Draws the goal from the seed of the reset, reports success as a bool, and renders upright."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        if seed is not None:
            self.unwrapped.seed(seed)  # Meta-World's own reset ignores its seed
        return self.env.reset(options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "success": bool(info["success"])}

    def render(self) -> np.ndarray | None:
        frame = self.env.render()
        return frame[::-1, ::-1].copy() if isinstance(frame, np.ndarray) else frame  # the camera hangs upside down


def make(task: TaskSpec, **kwargs: Any) -> gymnasium.Env:
    choose_mujoco_renderer()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    if "render_mode" in kwargs:
        kwargs.setdefault("camera_name", "corner2")
    env = ALL_V3_ENVIRONMENTS[task.env_id](reward_function_version="v2", **kwargs)
    env.model.vis.quality.shadowsize = 0  # faint shadows, which take two thirds of the time of rendering without a GPU
    # Meta-World's public constructors offer either 50 fixed goals or a hidden one. These fields, which its own
    # benchmarks set the same way, give a visible goal from the environment's generator at every reset.
    env._partially_observable = False
    env._freeze_rand_vec = False
    env._set_task_called = True
    env.seeded_rand_vec = True
    env.__dict__.pop("sawyer_observation_space", None)  # cached for the hidden goal
    env.observation_space = env.sawyer_observation_space
    return observe_vector(_SeededGoal(env))
