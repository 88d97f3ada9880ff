"""Atari 2600 games: stacks of four 84x84 grayscale frames, 4 frames a timestep, each game's own set of actions.

The observations are bit for bit those of ale-py's `AtariVectorEnv` (DeepMind's preprocessing, Mnih et al. 2015, without
clipped rewards and without ending at the loss of a life), so that networks trained there see here what they know.
"""

from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformObservation

from ..tasks import TaskSpec

FRAMES_PER_STEP = 4
STACKED_FRAMES = 4
SCREEN_SIZE = 84

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for every emulator


class _VariedStart(gymnasium.Wrapper):
    """Begins an episode with a random number of idle frames, then presses FIRE in games that wait for it."""

    def __init__(self, env: gymnasium.Env, noop_max: int) -> None:
        super().__init__(env)
        self.noop_max = noop_max

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        idle = int(self.unwrapped.np_random.integers(1, self.noop_max + 1)) if self.noop_max else 0
        fire = [1] if self.unwrapped.get_action_meanings()[1] == "FIRE" else []
        for action in [0] * idle + fire:
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        return observation, info


def make(task: TaskSpec, noop_max: int = 30, **kwargs: Any) -> gymnasium.Env:
    """Make a game.

    Args:
        noop_max: an episode begins with up to so many frames of doing nothing, drawn from the seed.
        kwargs: handed to `gymnasium.make`.
    """
    env = gymnasium.make(
        task.env_id,
        frameskip=1,
        repeat_action_probability=0.0,
        max_num_frames_per_episode=task.horizon * FRAMES_PER_STEP,
        **kwargs,
    )
    env.metadata["render_fps"] = 15  # rendered once a timestep
    env = AtariPreprocessing(
        _VariedStart(env, noop_max), noop_max=0, frame_skip=FRAMES_PER_STEP, screen_size=SCREEN_SIZE
    )
    env = FrameStackObservation(env, STACKED_FRAMES, padding_type="zero")
    space = spaces.Box(0, 255, (SCREEN_SIZE, SCREEN_SIZE, STACKED_FRAMES), np.uint8)
    return TransformObservation(
        env,
        lambda frames: {"image_observation": np.ascontiguousarray(np.moveaxis(frames, 0, -1))},
        spaces.Dict(image_observation=space),
    )
