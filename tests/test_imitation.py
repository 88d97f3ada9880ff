"""What the experts of Atari show can be learnt: plain networks are cloned from their data."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_expert_atari import ActorCritic, export_to_play

from dataset_builder import get_task, load_episodes
from dataset_builder.builder import build
from dataset_builder.evaluation import evaluate
from dataset_builder.experts.network import read_network


def clone(data, task, epochs=8, minibatch=256):
    """A network of the same kind as the expert, trained on its actions by cross-entropy."""
    episodes = load_episodes(data, task)
    # (timesteps, 84, 84, 4)
    images = torch.cat([torch.from_numpy(np.asarray(episode["image_observations"])) for episode in episodes])
    actions = torch.from_numpy(np.concatenate([episode["discrete_actions"] for episode in episodes]))
    network = ActorCritic(int(actions.max()) + 1)
    steps = epochs * len(actions) // minibatch
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(actions), (minibatch,))
        logits, _ = network(images[rows].movedim(-1, 1).bfloat16() / 255)
        loss = F.cross_entropy(logits, actions[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


@pytest.mark.slow
@pytest.mark.parametrize("task", ["atari-boxing", "atari-breakout", "atari-freeway", "atari-pong"])
def test_a_clone_of_the_network_reaches_most_of_its_score(task, tmp_path):
    torch.manual_seed(0)
    build(task, tmp_path / "data", steps=200_000, expert="network", num_workers=2)
    path = tmp_path / "clone.safetensors"
    export_to_play(clone(tmp_path / "data", task), get_task(task), path, {}, games=10)
    reached = evaluate(read_network(path), task, episodes=20)
    expert = np.mean([np.sum(episode["rewards"]) for episode in load_episodes(tmp_path / "data", task)])
    assert reached.mean >= 0.7 * expert
