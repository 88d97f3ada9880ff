"""Small networks trained by reinforcement learning, whose weights come with the package.

A file holds one network; its metadata say how it was trained. Two kinds:

- of vectors: `observation_mean` and `observation_std`, then `layers.N.weight` (outputs, inputs) and `layers.N.bias`,
  with the activation between them that the metadata `activation` names, tanh if none; where there is `action_scale`,
  the action is tanh of the outputs times that. `examples/train_expert_mujoco.py` writes such files.
- of images, divided by 255: `convolutions.N.weight` (outputs, inputs, height, width) and `.bias`, then layers as above,
  in half precision, with rectifiers between them. The metadata `strides` are those of the convolutions; `temperature`
  is that of the distribution over the actions, 0 to take the likeliest. `examples/train_expert_atari.py` writes such
  files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import safe_open
from safetensors.numpy import load_file
from threadpoolctl import ThreadpoolController

from ..rollout import Observation
from ..tasks import TaskSpec
from . import MissingExpertError

WEIGHTS = Path(__file__).parent / "weights"
OBSERVATION_LIMIT = 10.0  # normalised observations are clipped to this, as in training

Weights = tuple[np.ndarray, np.ndarray]  # weight and bias
_THREADS = ThreadpoolController()


def tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


@dataclass(frozen=True, kw_only=True)
class Network:
    """Convolutions, then layers, with the activation between them.

    Args:
        layers: the weights (outputs, inputs) and biases of each.
        activation: after all but the last of them.
        convolutions: the weights (outputs, inputs, height, width) and biases of each.
        strides: of the convolutions.
        mean, std: of the input, by which it is normalised; images channels first.
        limit: of the normalised input.
        scale: of the outputs, after tanh; None to leave them as they are.
    """

    layers: Sequence[Weights]
    activation: Callable[[np.ndarray], np.ndarray]
    convolutions: Sequence[Weights] = ()
    strides: Sequence[int] = ()
    mean: np.ndarray | float = 0.0
    std: np.ndarray | float = 1.0
    limit: float = np.inf
    scale: np.ndarray | None = None

    # Too small for several threads: beside other work, their waiting for each other takes a hundred times as long.
    @_THREADS.wrap(limits=1, user_api="blas")
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """A vector, or an image (height, width, channels) -> the outputs of the last layer, float32."""
        if self.convolutions:
            x = np.moveaxis(x, -1, 0)
        x = np.clip((x - self.mean) / self.std, -self.limit, self.limit).astype(np.float32)
        for (weight, bias), stride in zip(self.convolutions, self.strides, strict=True):
            # (channels, rows, columns, height, width) of all windows
            windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
            rows, columns = windows.shape[1:3]
            flat = windows.transpose(1, 2, 0, 3, 4).reshape(rows * columns, -1)
            x = self.activation(flat @ weight.reshape(len(weight), -1).T + bias).T.reshape(-1, rows, columns)
        x = x.ravel()
        *hidden, (last_weight, last_bias) = self.layers
        for weight, bias in hidden:
            x = self.activation(weight @ x + bias)
        x = last_weight @ x + last_bias
        return x if self.scale is None else np.tanh(x) * self.scale


class NetworkPolicy:
    """Plays what a network says.

    Args:
        network: from the observation to the action, or to the logits of discrete actions.
        observation_key: of the observation that it looks at.
        temperature: of the distribution that discrete actions are drawn from, 0 for the likeliest; None where the
            outputs are the action.
    """

    def __init__(self, network: Network, observation_key: str, temperature: float | None = None) -> None:
        self.network, self.observation_key, self.temperature = network, observation_key, temperature

    def reset(self, env: gymnasium.Env, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, observation: Observation, reward: float | None) -> np.ndarray | int:
        output = self.network(observation[self.observation_key])
        if self.temperature is None:
            return output
        if self.temperature:
            # The argmax of logits with Gumbel noise is a draw from their softmax.
            output = output / self.temperature + self.rng.gumbel(size=output.shape)
        return int(output.argmax())


def read_network(path: str | Path) -> NetworkPolicy:
    """The policy of a file as this module describes it."""
    tensors = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()

    def stacked(kind: str) -> list[Weights]:
        count = sum(name.startswith(f"{kind}.") for name in tensors) // 2
        return [(tensors[f"{kind}.{i}.weight"], tensors[f"{kind}.{i}.bias"]) for i in range(count)]

    if "strides" in metadata:
        strides = [int(stride) for stride in metadata["strides"].split(",")]
        network = Network(
            layers=stacked("layers"),
            activation=relu,
            convolutions=stacked("convolutions"),
            strides=strides,
            std=255.0,
        )
        return NetworkPolicy(network, "image_observation", float(metadata["temperature"]))
    network = Network(
        layers=stacked("layers"),
        activation={"tanh": tanh, "relu": relu}[metadata.get("activation", "tanh")],
        mean=tensors["observation_mean"],
        std=tensors["observation_std"],
        limit=OBSERVATION_LIMIT,
        scale=tensors.get("action_scale"),
    )
    return NetworkPolicy(network, "continuous_observation")


def weights_path(task: TaskSpec) -> Path:
    return WEIGHTS / f"{task.name}.safetensors"


def load(task: TaskSpec) -> NetworkPolicy:
    path = weights_path(task)
    if not path.exists():
        raise MissingExpertError(
            f"{task.name} has no weights at {path}: train them with "
            f"`python examples/train_expert_{task.domain}.py --tasks {task.name}`, or build with another expert"
        )
    return read_network(path)
