"""Noise on actions, so that data show how an expert recovers from what it would never do by itself.

DART (Laskey et al. 2017, arXiv 1703.09327): the environment executes a noisy action, the data store the one that the
expert meant. Who imitates an expert drifts off its path, and only such data say how to come back.
"""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces


class ActionNoise(gymnasium.Wrapper):
    """Adds Gaussian noise to the actions of about every second episode; the seed of its reset decides and draws.

    Args:
        env: with continuous actions.
        scale: standard deviation, in halves of the range of each action.

    Raises:
        ValueError: if the actions are discrete or unbounded.
    """

    def __init__(self, env: gymnasium.Env, scale: float) -> None:
        super().__init__(env)
        space = env.action_space
        if not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise ValueError(f"action noise needs continuous actions with bounds, got {space}")
        self.deviation = scale * (space.high - space.low) / 2

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.noise = np.random.default_rng(None if seed is None else [seed, 1])
        self.is_noisy = bool(self.noise.integers(2))
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict]:
        if self.is_noisy:
            space = self.action_space
            noisy = action + self.deviation * self.noise.standard_normal(space.shape)
            action = np.clip(noisy, space.low, space.high).astype(space.dtype)
        return self.env.step(action)
