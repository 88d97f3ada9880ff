"""The scripted policies of Meta-World, one for each of its 50 tasks: functions of the observation."""

import warnings

import gymnasium
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError

# Some scripts ask for more than the arm can do; the rollout clips their actions as the environment would.
warnings.filterwarnings("ignore", message="Constant.* may be too high", module="metaworld.policies")


class ScriptedPolicy:
    """Meta-World's script for one environment."""

    def __init__(self, env_id: str) -> None:
        self.script_class = ENV_POLICY_MAP[env_id]

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.script = self.script_class()

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        return self.script.get_action(observation["continuous_observation"].astype(np.float64))


def load(task: TaskSpec) -> ScriptedPolicy:
    if task.env_id not in ENV_POLICY_MAP:
        raise MissingExpertError(f"metaworld has no scripted policy for {task.name} ({task.env_id})")
    return ScriptedPolicy(task.env_id)
