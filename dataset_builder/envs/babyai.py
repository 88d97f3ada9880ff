"""BabyAI: missions in a grid world, of which the agent sees the 7x7 cells before it.

The discrete observation has 148 values: the direction (0-3), then the cells' kind, color and state row by row. The
text observation is the mission, which stays the same for a whole episode.
"""

import io
from contextlib import redirect_stdout
from typing import Any, SupportsFloat

import gymnasium
import minigrid  # noqa: F401  registers the environments
import numpy as np
from gymnasium import spaces

from ..tasks import TaskSpec


class _SymbolicView(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        cells = env.observation_space["image"]
        directions = env.observation_space["direction"].n
        self.observation_space = spaces.Dict(
            text_observation=env.observation_space["mission"],
            discrete_observation=spaces.MultiDiscrete([directions, *(cells.high.flatten().astype(np.int64) + 1)]),
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        with redirect_stdout(io.StringIO()):  # the generator of missions prints every draft that it rejects
            observation, info = self.env.reset(seed=seed, options=options)
        return self._view(observation), info

    def step(self, action: int) -> tuple[dict, SupportsFloat, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        # A positive reward is given once, when the mission is accomplished.
        return self._view(observation), float(reward), terminated, truncated, {**info, "success": bool(reward > 0)}

    def _view(self, observation: dict) -> dict:
        return {
            "text_observation": observation["mission"],
            "discrete_observation": np.array([observation["direction"], *observation["image"].flat], np.int64),
        }


def make(task: TaskSpec, **kwargs: Any) -> gymnasium.Env:
    return _SymbolicView(gymnasium.make(task.env_id, **kwargs))
