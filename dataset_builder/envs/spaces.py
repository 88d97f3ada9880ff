"""The wrapper that brings vector observations into the form that `dataset_builder.envs` promises."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation


def observe_vector(env: gymnasium.Env) -> gymnasium.Env:
    """Box observations of any float type as `{"continuous_observation": float32}`."""
    box = env.observation_space
    size = int(np.prod(box.shape))
    space = spaces.Box(
        np.asarray(box.low, np.float32).reshape(size), np.asarray(box.high, np.float32).reshape(size), dtype=np.float32
    )
    return TransformObservation(
        env,
        lambda observation: {"continuous_observation": np.asarray(observation, np.float32).reshape(size)},
        spaces.Dict({"continuous_observation": space}),
    )
