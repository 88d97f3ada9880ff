"""Checkpoints as Sample Factory writes them, on a Hub on loopback, become experts.

The states have the names and shapes that Sample Factory 2.1.1 gives them; the numbers were compared with its own
network once, and are here compared with PyTorch's layers.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import running_hub
from torch import nn

from dataset_builder import get_task
from dataset_builder.experts.hub import rebuild, repository

CONFIG = {
    "actor_critic_share_weights": True,
    "encoder_conv_architecture": "convnet_atari",
    "nonlinearity": "relu",
    "normalize_input": False,
    "obs_scale": 255.0,
    "obs_subtract_mean": 0.0,
    "use_rnn": False,
}
ACT = """
import sys, numpy as np
from dataset_builder import MissingExpertError, load_expert
try:
    expert = load_expert(sys.argv[1], source="hub")
except MissingExpertError as error:
    sys.exit(str(error))
expert.reset(None, 0)
observation = {"continuous_observation": np.linspace(-3, 3, 11, dtype=np.float32)}
print(*expert.act(observation, None))
"""


def named(module, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def statistics(shape):
    prefix = "obs_normalizer.running_mean_std.running_mean_std.obs."
    generator = torch.Generator().manual_seed(1)
    return {
        f"{prefix}running_mean": torch.randn(shape, generator=generator, dtype=torch.float64),
        f"{prefix}running_var": torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1,
        f"{prefix}count": torch.tensor([1000.0], dtype=torch.float64),
    }


def make_checkpoint(state):
    """What `Learner._get_checkpoint_dict` of Sample Factory saves; the best performance is a scalar of numpy."""
    file = io.BytesIO()
    checkpoint = {
        "train_step": 7,
        "env_steps": 9,
        "best_performance": np.float64(21.0),
        "model": state,
        "optimizer": {},
    }
    torch.save({**checkpoint, "curr_lr": 1e-4}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hopper():
    """A network for the hopper, its state, and what it answers to the observation of ACT."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(11, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    output, moments = nn.Linear(64, 3), statistics(11)
    mean, variance, _ = (tensor.float() for tensor in moments.values())
    with torch.no_grad():
        normalized = ((torch.linspace(-3, 3, 11) - mean) / (variance + 1e-5).sqrt()).clamp(-5, 5)
        answer = output(layers(normalized)).numpy()
    state = {
        **moments,
        **named(layers, "encoder.encoders.obs.mlp_head."),
        **named(nn.Linear(64, 1), "critic_linear."),
        "action_parameterization.learned_stddev": torch.zeros(3),
        **named(output, "action_parameterization.distribution_linear."),
    }
    return state, answer


def act(hub, home, task="mujoco-hopper"):
    return subprocess.run(
        [sys.executable, "-c", ACT, task],
        env={**os.environ, **hub.environment(str(home))},
        capture_output=True,
        text=True,
        check=False,
    )


def files(checkpoint, **options):
    config = {**CONFIG, "nonlinearity": "tanh", "normalize_input": True, "obs_scale": 1.0, **options}
    return {
        "config.json": json.dumps(config).encode(),
        "checkpoint_p0/best_000000001_1_reward_3.0.pth": b"",
        "checkpoint_p0/checkpoint_000000003_4.pth": b"an older one",
        "checkpoint_p0/checkpoint_000000007_9.pth": checkpoint,
    }


def test_an_expert_from_the_hub(hopper, tmp_path):
    state, answer = hopper
    with running_hub() as hub:
        hub.add("models", "edbeeching/mujoco_hopper_1111", files(make_checkpoint(state)))
        result = act(hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.allclose([float(value) for value in result.stdout.split()], answer, atol=1e-6)


EXECUTED = Path(tempfile.gettempdir()) / "jat-test-executed"


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {EXECUTED}",)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "edbeeching/mujoco_hopper_1111, cannot be loaded from the Hub"),
        ({"README.md": b"nothing"}, {}, "expected config.json and a checkpoint_p0/checkpoint_*.pth, got README.md"),
        (b"not a checkpoint", {}, "is no checkpoint of Sample Factory"),
        (pickle.dumps(Malicious()), {}, "is no checkpoint of Sample Factory"),
        ({"model": Malicious()}, {}, "is no checkpoint of Sample Factory"),
        ({}, {"use_rnn": True}, "expected a network without memory"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, options, message, tmp_path):
    with running_hub() as hub:
        if isinstance(content, dict) and "README.md" in content:
            hub.add("models", "edbeeching/mujoco_hopper_1111", content)
        elif content is not None:
            checkpoint = content if isinstance(content, bytes) else make_checkpoint(content.get("model", {}))
            hub.add("models", "edbeeching/mujoco_hopper_1111", files(checkpoint, **options))
        result = act(hub, tmp_path)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not EXECUTED.exists()


@pytest.mark.parametrize("normalized", [False, True])
def test_a_network_of_atari(normalized):
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()
    )
    hidden, output = nn.Sequential(nn.Linear(3136, 512), nn.ReLU()), nn.Linear(512, 6)
    state = {
        **named(convolutions, "encoder.encoders.obs.enc.conv_head."),
        **named(hidden, "encoder.encoders.obs.enc.mlp_layers."),
        **named(output, "action_parameterization.distribution_linear."),
    }
    image = np.random.default_rng(0).integers(0, 256, (84, 84, 4), np.uint8)
    x = torch.from_numpy(np.moveaxis(image, -1, 0)) / 255
    if normalized:
        state |= statistics((4, 84, 84))
        mean, variance, _ = (tensor.float() for tensor in statistics((4, 84, 84)).values())
        x = ((x - mean) / (variance + 1e-5).sqrt()).clamp(-5, 5)
    with torch.no_grad():
        logits = output(hidden(convolutions(x[None]).flatten(1)))[0]
    policy = rebuild(state, {**CONFIG, "normalize_input": normalized}, get_task("atari-pong"))
    assert np.allclose(policy.network(image), logits, atol=1e-5)
    policy.reset(None, 0)
    actions = {policy.act({"image_observation": image}, None) for _ in range(200)}
    assert len(actions) > 3  # drawn, as the published data were


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("atari-pong", "edbeeching/atari_2B_atari_pong_1111"),
        ("atari-kungfumaster", "edbeeching/atari_2B_atari_kongfumaster_1111"),
        ("mujoco-ant", "edbeeching/mujoco_ant_1111"),
        ("metaworld-door-open", "qgallouedec/door-open-v2"),
    ],
)
def test_repositories(task, expected):
    assert repository(get_task(task)) == expected
