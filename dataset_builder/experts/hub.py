"""The published experts: checkpoints of Sample Factory (Petrenko et al. 2020, arXiv 2006.11751) on the Hub.

Such a repository holds `config.json`, the options of the training, and `checkpoint_p0/checkpoint_*.pth`, written by
`torch.save`: a dict whose "model" is the state of a network. The file is read as weights only, so that no code of it
runs, and the network is rebuilt from the options; Sample Factory itself is not needed.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from ..tasks import TaskSpec
from . import MissingExpertError
from .network import Network, NetworkPolicy, Weights, elu, relu, tanh

# Where they are, by domain. Games, apart from those below, by their names without spaces.
REPOSITORIES = {
    "atari": "edbeeching/atari_2B_atari_{name}_1111",
    "mujoco": "edbeeching/mujoco_{name}_1111",
    "metaworld": "qgallouedec/{name}-v2",
}
OTHER_NAMES = {
    "asteroids": "asteroid",
    "kungfumaster": "kongfumaster",
    "montezumarevenge": "montezuma",
    "privateeye": "privateye",
}

ACTIVATIONS = {"tanh": tanh, "relu": relu, "elu": elu}
STRIDES = {"convnet_simple": (4, 2, 2), "convnet_impala": (4, 2), "convnet_atari": (4, 2, 1)}
# Of Sample Factory's normalisation of observations.
EPSILON, LIMIT = 1e-5, 5.0

# What its checkpoints hold besides tensors and plain values: a score as a scalar of numpy, before version 2 or since.
_SCALARS = [
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)},
]


def repository(task: TaskSpec) -> str:
    """The repository of a task's published expert."""
    if task.domain not in REPOSITORIES:
        raise MissingExpertError(
            f"{task.name} has no published expert on the Hub: those of {', '.join(REPOSITORIES)} do"
        )
    name = task.name.removeprefix(f"{task.domain}-")
    return REPOSITORIES[task.domain].format(name=OTHER_NAMES.get(name, name))


def load(task: TaskSpec) -> NetworkPolicy:
    repo_id = repository(task)
    try:
        files = HfApi().list_repo_files(repo_id)
        checkpoints = sorted(file for file in files if file.startswith("checkpoint_p0/checkpoint_"))
        if not checkpoints or "config.json" not in files:
            raise MissingExpertError(
                f"{repo_id} is not a repository of Sample Factory: expected config.json and a "
                f"checkpoint_p0/checkpoint_*.pth, got {', '.join(files)}"
            )
        config = json.loads(Path(hf_hub_download(repo_id, "config.json")).read_text(encoding="utf-8"))
        path = hf_hub_download(repo_id, checkpoints[-1])
    except (HfHubHTTPError, OSError) as error:
        raise MissingExpertError(
            f"the published expert of {task.name}, {repo_id}, cannot be loaded from the Hub: {error}"
        ) from error
    try:
        with torch.serialization.safe_globals(_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return rebuild(checkpoint["model"], config, task)
    except (pickle.UnpicklingError, KeyError, ValueError) as error:
        raise MissingExpertError(
            f"{checkpoints[-1]} of {repo_id} is no checkpoint of Sample Factory that can be read: {error}"
        ) from error


def rebuild(state: dict[str, torch.Tensor], config: dict[str, Any], task: TaskSpec) -> NetworkPolicy:
    """The policy of a network's state.

    Raises:
        ValueError: if the network is of a kind that the published experts are not.
    """
    if config["use_rnn"] or not config["actor_critic_share_weights"]:
        raise ValueError("expected a network without memory whose policy and value share their weights")
    if task.has_images and config["encoder_conv_architecture"] not in STRIDES:
        raise ValueError(f"expected one of {', '.join(STRIDES)}, got {config['encoder_conv_architecture']}")
    tensors = {name: tensor.float().numpy() for name, tensor in state.items()}

    def stacked(prefix: str) -> list[Weights]:
        numbers = sorted(int(name.split(".")[-2]) for name in tensors if name.startswith(prefix) and "weight" in name)
        return [(tensors[f"{prefix}{i}.weight"], tensors[f"{prefix}{i}.bias"]) for i in numbers]

    encoder, output = "encoder.encoders.obs.", "action_parameterization.distribution_linear."
    hidden = stacked(f"{encoder}enc.mlp_layers." if task.has_images else f"{encoder}mlp_head.")
    mean, std = config["obs_subtract_mean"], config["obs_scale"]
    if config["normalize_input"]:
        statistics = "obs_normalizer.running_mean_std.running_mean_std.obs.running_"
        mean, std = (
            mean + std * tensors[f"{statistics}mean"],
            std * np.sqrt(tensors[f"{statistics}var"] + EPSILON),
        )
    network = Network(
        layers=[*hidden, *stacked("decoder.mlp."), (tensors[f"{output}weight"], tensors[f"{output}bias"])],
        activation=ACTIVATIONS[config["nonlinearity"]],
        convolutions=stacked(f"{encoder}enc.conv_head."),
        strides=STRIDES[config["encoder_conv_architecture"]] if task.has_images else (),
        mean=mean,
        std=std,
        limit=LIMIT if config["normalize_input"] else np.inf,
    )
    # The published data were made with drawn actions in Atari, with the mean of the distribution elsewhere.
    return NetworkPolicy(network, task.observation_keys[0], temperature=1.0 if task.has_images else None)
