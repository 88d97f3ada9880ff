"""Gymnasium's MuJoCo bodies: one vector of joint positions, velocities and the like."""

import warnings
from typing import Any

import gymnasium

from ..tasks import TaskSpec
from . import choose_mujoco_renderer
from .spaces import observe_vector


def make(task: TaskSpec, **kwargs: Any) -> gymnasium.Env:
    choose_mujoco_renderer()
    if "camera_id" not in kwargs:
        # The default one stands still, and bodies walk out of its view. Those without this one do not walk.
        kwargs.setdefault("camera_name", "track")
    with warnings.catch_warnings():
        # The -v4 ids are meant: they have the observations of the published data.
        warnings.filterwarnings("ignore", message=".*out of date.*")
        env = gymnasium.make(task.env_id, **kwargs)
    return observe_vector(env)
