"""Small networks trained by reinforcement learning, whose weights come with the package.

A file holds one network: `observation_mean` and `observation_std`, then `layers.N.weight` (outputs, inputs) and
`layers.N.bias`. Its metadata say how it was trained. `examples/train_expert_mujoco.py` writes such files.
"""

from pathlib import Path

import gymnasium
import numpy as np
from safetensors.numpy import load_file

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError

WEIGHTS = Path(__file__).parent / "weights"
OBSERVATION_LIMIT = 10.0  # normalised observations are clipped to this, as in training


class NetworkPolicy:
    """Deterministic actions of a multi-layer perceptron with tanh between its layers."""

    def __init__(self, path: str | Path) -> None:
        tensors = load_file(path)
        self.mean = tensors["observation_mean"]
        self.std = tensors["observation_std"]
        depth = sum(name.endswith(".weight") for name in tensors)
        self.layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(depth)]

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        pass

    def act(self, observation: Observation, reward: float | None) -> np.ndarray:
        x = (observation["continuous_observation"] - self.mean) / self.std
        x = np.clip(x, -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        *hidden, (last_weight, last_bias) = self.layers
        for weight, bias in hidden:
            x = np.tanh(weight @ x + bias)
        return last_weight @ x + last_bias


def weights_path(task: TaskSpec) -> Path:
    return WEIGHTS / f"{task.name}.safetensors"


def load(task: TaskSpec) -> NetworkPolicy:
    path = weights_path(task)
    if not path.exists():
        raise MissingExpertError(
            f"{task.name} has no weights at {path}: train them with "
            f"`python examples/train_expert_mujoco.py --task {task.name}`, or build with another expert"
        )
    return NetworkPolicy(path)
