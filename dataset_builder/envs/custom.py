"""Users' own tasks: any environment that gymnasium can make, brought into the form that `dataset_builder.envs` promises.

| the environment's observation space | becomes |
| --- | --- |
| Box of any shape | continuous_observation, flattened |
| Box of uint8, (height, width) or (height, width, 3) | image_observation: 84x84 in gray, the last four frames stacked |
| Box of uint8, (84, 84, 4) | image_observation, as it is |
| Discrete, MultiDiscrete, MultiBinary | discrete_observation, counted from 0 |
| Text | text_observation; the model reads it beside a discrete one |
| Dict or Tuple of those, nested | with anything continuous in it all but texts becomes one continuous_observation (discrete values one-hot), else one discrete_observation |

Actions: Discrete as it is, Box flattened as float32. Success is `info["success"]` or `info["is_success"]`.
"""  # noqa: E501  a table

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.wrappers import (
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TransformAction,
    TransformObservation,
)

from ..tasks import TaskSpec

SCREEN_SIZE = 84
STACKED_FRAMES = 4

_DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_CONTAINERS = (spaces.Dict, spaces.Tuple)


class _Success(gymnasium.Wrapper):
    """Reports success under one name."""

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "is_success" in info:
            info = {"success": bool(info["is_success"]), **info}
        return observation, reward, terminated, truncated, info


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _leaves(space: spaces.Space) -> list[spaces.Space]:
    """The spaces in a space, nested ones resolved, in the order in which gymnasium flattens them."""
    if isinstance(space, spaces.Dict):
        return [leaf for part in space.values() for leaf in _leaves(part)]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space for leaf in _leaves(part)]
    return [space]


def _values(space: spaces.Space, observation: Any) -> list[Any]:
    """The observation's values, one for each of the `_leaves`."""
    if isinstance(space, spaces.Dict):
        return [value for key, part in space.items() for value in _values(part, observation[key])]
    if isinstance(space, spaces.Tuple):
        return [value for part, sub in zip(space, observation, strict=True) for value in _values(part, sub)]
    return [observation]


def _sizes(space: spaces.Space) -> list[int]:
    """How many values each element of a discrete space takes."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    return [int(n) for n in space.nvec.flat]


def _counted_from_zero(space: spaces.Space, value: Any) -> np.ndarray:
    start = 0 if isinstance(space, spaces.MultiBinary) else space.start
    return np.asarray(value, np.int64).ravel() - np.ravel(start)


def _observe_images(env: gymnasium.Env) -> gymnasium.Env:
    """Images as Atari's: gray, small, the last ones stacked."""
    shape = env.observation_space.shape
    as_atari = (SCREEN_SIZE, SCREEN_SIZE, STACKED_FRAMES)
    if shape != as_atari:
        if len(shape) == 3:
            if shape[-1] != 3:
                raise ValueError(f"expected images of 1 or 3 channels, or of shape {as_atari}, got {shape}")
            env = GrayscaleObservation(env)
        env = FrameStackObservation(
            ResizeObservation(env, (SCREEN_SIZE, SCREEN_SIZE)), STACKED_FRAMES, padding_type="zero"
        )
        env = TransformObservation(
            env,
            lambda frames: np.ascontiguousarray(np.moveaxis(frames, 0, -1)),
            spaces.Box(0, 255, as_atari, np.uint8),
        )
    space = spaces.Dict(image_observation=env.observation_space)
    return TransformObservation(env, lambda image: {"image_observation": image}, space)


def _observe_values(env: gymnasium.Env) -> gymnasium.Env:
    """Everything but images: one vector, continuous or discrete, and a text."""
    space = env.observation_space
    leaves = _leaves(space)
    texts = [i for i, leaf in enumerate(leaves) if isinstance(leaf, spaces.Text)]
    numbers = [i for i, leaf in enumerate(leaves) if i not in texts]
    unknown = [leaf for leaf in leaves if not isinstance(leaf, (*_DISCRETE, spaces.Box, spaces.Text))]
    if unknown or len(texts) > 1 or any(_is_image(leaf) for leaf in leaves):
        raise ValueError(
            f"expected Box, Discrete, MultiDiscrete or MultiBinary spaces and at most one Text, or one image alone, "
            f"got {space}: wrap the environment, for instance in gymnasium.wrappers.FilterObservation"
        )
    discrete = all(isinstance(leaves[i], _DISCRETE) for i in numbers)
    if texts and not (discrete and numbers):
        raise ValueError(
            f"a text is read beside discrete observations only, got {space}: wrap the environment, for instance in "
            "gymnasium.wrappers.FilterObservation"
        )
    if discrete:
        key = "discrete_observation"
        vector_space = spaces.MultiDiscrete([size for i in numbers for size in _sizes(leaves[i])])
    else:
        key = "continuous_observation"
        flat = [flatten_space(leaves[i]) for i in numbers]
        low, high = (np.concatenate([getattr(box, end) for box in flat]).astype(np.float32) for end in ("low", "high"))
        vector_space = spaces.Box(low, high, dtype=np.float32)
    observed = {"text_observation": leaves[texts[0]]} if texts else {}

    def observe(observation: Any) -> dict[str, Any]:
        values = _values(space, observation)
        if discrete:
            vector = np.concatenate([_counted_from_zero(leaves[i], values[i]) for i in numbers])
        else:
            vector = np.concatenate([np.asarray(flatten(leaves[i], values[i]), np.float32) for i in numbers])
        return {**({"text_observation": values[texts[0]]} if texts else {}), key: vector}

    return TransformObservation(env, observe, spaces.Dict({**observed, key: vector_space}))


def _act_flat(env: gymnasium.Env) -> gymnasium.Env:
    """Box actions of any shape and type as float32 vectors."""
    box = env.action_space
    if isinstance(box, spaces.Discrete):
        return env
    if not isinstance(box, spaces.Box):
        raise ValueError(f"expected Discrete or Box actions, got {box}: wrap the environment to have one of them")
    space = spaces.Box(box.low.ravel().astype(np.float32), box.high.ravel().astype(np.float32), dtype=np.float32)
    return TransformAction(env, lambda action: np.asarray(action, box.dtype).reshape(box.shape), space)


def make(task: TaskSpec, **kwargs: Any) -> gymnasium.Env:
    env = _Success(gymnasium.make(task.env_id, **kwargs))
    try:
        env = _act_flat(env)
        return _observe_images(env) if _is_image(env.observation_space) else _observe_values(env)
    except ValueError as error:
        raise ValueError(f"{task.name} ({task.env_id}): {error}") from error
