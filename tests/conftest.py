"""What several tests share: the published implementation's outputs, a small data set, a small agent."""

import json
import os
import time
from pathlib import Path

# Before anything of the Hub is imported: tests reach no network unless they start a server themselves.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from datasets import load_dataset

import modeling_jat
import processing_jat
from dataset_builder import get_task
from dataset_builder.builder import build

PARITY = Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path_factory, monkeypatch):
    """Data sets that a test loads are cached where they are deleted with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))


@pytest.fixture(scope="session")
def parity_manifest():
    return json.loads((PARITY / "manifest.json").read_text())


@pytest.fixture
def parity_case():
    """The arrays of a case by name."""
    return lambda name: np.load(PARITY / "cases" / f"{name}.npz")


@pytest.fixture
def parity_model():
    """A tiny checkpoint in the published format, by name."""
    return lambda name: modeling_jat.JatModelForCausalLM.from_pretrained(PARITY / name, dtype=torch.float32)


def wait_until(condition, process):
    """Wait for a process to have come so far; fail if it ends before, or takes more than two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


TASKS = ["metaworld-reach", "babyai-go-to-red-ball-no-dists", "mujoco-pendulum", "atari-pong"]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """12 short episodes of a task of each domain, by random actions where an expert would take long."""
    folder = tmp_path_factory.mktemp("data") / "jat-dataset"
    build(TASKS[:2], folder, episodes=12, progress=False)
    build(TASKS[2:3], folder, episodes=12, max_episode_steps=50, progress=False)
    build(TASKS[3:], folder, episodes=12, expert="random", max_episode_steps=20, progress=False)
    return folder


@pytest.fixture(scope="session")
def processor():
    texts = [get_task(name).instruction for name in TASKS] + ["go to the red ball"]
    return processing_jat.JatProcessor.from_texts(texts, vocab_size=300, model_max_length=64)


def make_config(**kwargs):
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64, "window_size": 16}
    tokens = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return modeling_jat.JatConfig(**{**sizes, **tokens, **kwargs})


@pytest.fixture
def make_model():
    """A small model with random weights, always the same ones."""

    def make(**kwargs):
        torch.manual_seed(0)
        return modeling_jat.JatModelForCausalLM(make_config(**kwargs)).eval()

    return make


@pytest.fixture
def load_task(data_folder):
    return lambda name, split="train": load_dataset(str(data_folder), name, split=split)


def continuous_batch(batch=2, length=6, size=5, actions=3):
    generator = torch.Generator().manual_seed(0)
    return {
        "continuous_observations": torch.randn(batch, length, size, generator=generator),
        "continuous_actions": torch.randn(batch, length, actions, generator=generator),
        "rewards": torch.randn(batch, length, generator=generator),
    }


def discrete_batch(batch=2, length=6):
    generator = torch.Generator().manual_seed(0)
    return {
        "discrete_observations": torch.randint(0, 10, (batch, length, 212), generator=generator),
        "discrete_actions": torch.randint(0, 7, (batch, length), generator=generator),
        "rewards": torch.randn(batch, length, generator=generator),
    }


def image_batch(batch=2, length=3):
    generator = torch.Generator().manual_seed(0)
    return {
        "image_observations": torch.rand(batch, length, 4, 84, 84, generator=generator) * 2 - 1,
        "discrete_actions": torch.randint(0, 6, (batch, length), generator=generator),
        "rewards": torch.randn(batch, length, generator=generator),
    }


KINDS = {"continuous": continuous_batch, "discrete": discrete_batch, "image": image_batch}


def train(model, steps, learning_rate=1e-3, loss="loss", **batch):
    """Train the weights that may change on one batch; the loss before each step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], learning_rate)
    losses = []
    for _ in range(steps):
        value = model(**batch)[loss]
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return losses


class Hardest:
    """A sampling rule that learns: draws the task with the highest loss four times as often as the others."""

    def __init__(self, tasks):
        self.losses = dict.fromkeys(tasks, 0.0)

    def weights(self):
        hardest = max(self.losses, key=self.losses.get)
        return {task: 4.0 if task == hardest else 1.0 for task in self.losses}

    def update(self, losses):
        self.losses.update(losses)

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses = dict(state["losses"])
