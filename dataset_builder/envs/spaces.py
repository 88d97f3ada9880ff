"""Wrappers that bring an environment's spaces into the form that `dataset_builder.envs` promises."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction, TransformObservation


def observe_vector(env: gymnasium.Env) -> gymnasium.Env:
    """Box observations of any float type as `{"continuous_observation": float32}`, and float32 actions."""
    box = env.observation_space
    size = int(np.prod(box.shape))
    space = spaces.Box(
        np.asarray(box.low, np.float32).reshape(size), np.asarray(box.high, np.float32).reshape(size), dtype=np.float32
    )
    env = TransformObservation(
        env,
        lambda observation: {"continuous_observation": np.asarray(observation, np.float32).reshape(size)},
        spaces.Dict({"continuous_observation": space}),
    )
    if isinstance(env.action_space, spaces.Box) and env.action_space.dtype != np.float32:
        action_space = spaces.Box(
            env.action_space.low.astype(np.float32), env.action_space.high.astype(np.float32), dtype=np.float32
        )
        env = TransformAction(env, lambda action: np.asarray(action, np.float64), action_space)
    return env
