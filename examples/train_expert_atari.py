"""Train the networks that are the experts of Atari games, with proximal policy optimisation on the processor alone.

    python examples/train_expert_atari.py --tasks atari-pong atari-breakout --num-workers 2

One process and one thread a game; two million timesteps take about half an hour. The whole state of a training is
saved every minute or so in --checkpoints: the same command goes on after an interruption, and a bigger --timesteps goes
on with a finished one. Finished networks are written to the package. Needs nothing beyond the package itself.

The observations are those that the data set stores, and the rewards are clipped to -1, 0, 1 (Mnih et al. 2015). A lost
life ends the return that is learnt, not the game: the network has to press FIRE for its next ball itself, as it will
have to when it plays. After the papers: Schulman et al. 2017 (arXiv 1707.06347), and Huang et al. 2022 for its details.
"""

import argparse
import importlib.metadata
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dataset_builder import TaskSpec, get_task, select_tasks
from dataset_builder.envs.atari import FRAMES_PER_STEP, STACKED_FRAMES
from dataset_builder.evaluation import TaskScore, evaluate
from dataset_builder.executors import map_unordered
from dataset_builder.experts.network import read_network, weights_path
from dataset_builder.rollout import episode_seed
from dataset_builder.shards import whole_file

SAVE_EVERY = 51_200  # timesteps: about a minute
TEMPERATURES = (1.0, 0.5, 0.25, 0.0)  # of the distribution that a finished network draws its actions from


@dataclass(frozen=True, kw_only=True)
class Settings:
    timesteps: int = 2_000_000
    num_envs: int = 32
    rollout_length: int = 64  # timesteps of each environment between updates
    epochs: int = 3  # times that a rollout is learnt from
    minibatch: int = 256
    learning_rate: float = 1e-3  # falls to zero over the training
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.1  # of the ratio of new to old probabilities
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    max_grad_norm: float = 0.5


class ActorCritic(nn.Module):
    """Three convolutions and a hidden layer, shared by the policy and the value: 90,000 weights.

    Small enough to learn two million timesteps in half an hour on one core, and to come with the package.
    """

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(STACKED_FRAMES, 16, 8, stride=4),
                nn.Conv2d(16, 32, 4, stride=2),
                nn.Conv2d(32, 32, 3, stride=2),
            ]
        )
        self.hidden = nn.Linear(32 * 4 * 4, 128)
        self.policy = nn.Linear(128, num_actions)
        self.value = nn.Linear(128, 1)
        gains = {self.policy: 0.01, self.value: 1.0}
        for layer in (*self.convolutions, self.hidden, self.policy, self.value):
            nn.init.orthogonal_(layer.weight, gains.get(layer, 2**0.5))
            nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, 4, 84, 84) bfloat16 from 0 to 1 -> logits (rows, actions) and values (rows,), float32."""
        # In bfloat16 the convolutions take a third of the time; what follows takes none to speak of.
        x = observations
        with torch.autocast(x.device.type, torch.bfloat16):
            for convolution in self.convolutions:
                x = F.relu(convolution(x))
        x = F.relu(self.hidden(x.float().flatten(1)))
        return self.policy(x), self.value(x).squeeze(-1)


class Training:
    """One game: its emulators, its network, and how far it is.

    Args:
        task: an Atari task.
        settings: of the algorithm.
        device: where the network learns.
        seed: of the network, the emulators and the actions.
        checkpoint: file from which it goes on if it is there, and in which it is saved.
    """

    def __init__(self, task: TaskSpec, settings: Settings, seed: int, device: str, checkpoint: Path) -> None:
        self.task, self.settings, self.device, self.checkpoint = task, settings, device, checkpoint
        torch.manual_seed(seed)
        self.envs = AtariVectorEnv(
            rom(task),
            num_envs=settings.num_envs,
            num_threads=1,
            max_num_frames_per_episode=task.horizon * FRAMES_PER_STEP,
            reward_clipping=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.network = ActorCritic(int(self.envs.single_action_space.n)).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), eps=1e-5, fused=True)
        self.timesteps = 0
        self.history: list[tuple[int, float]] = []  # timesteps, mean return of the last games
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=device)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.timesteps, self.history = state["timesteps"], state["history"]
        start = episode_seed(task.name, self.timesteps, seed, purpose="train")
        self.observations, info = self.envs.reset(seed=start % 2**31)
        self.lives = info["lives"]
        self.returns = np.zeros(settings.num_envs)  # of the games being played
        self.finished: deque[float] = deque(maxlen=100)  # returns of the last games

    def save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "timesteps": self.timesteps,
            "history": self.history,
        }
        with whole_file(self.checkpoint) as file:
            torch.save(state, file)

    def update(self) -> None:
        """Play a rollout and learn from it."""
        settings = self.settings
        rate = settings.learning_rate * (1 - self.timesteps / settings.timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 0.0)
        rollout = self.play()
        size = len(rollout["actions"])
        for _ in range(settings.epochs):
            for rows in torch.randperm(size, device=self.device).split(settings.minibatch):
                loss = self.loss({key: values.index_select(0, rows) for key, values in rollout.items()})
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), settings.max_grad_norm)
                self.optimizer.step()
        self.timesteps += size

    @torch.no_grad()
    def play(self) -> dict[str, Tensor]:
        """A rollout, its environments and timesteps in one dimension."""
        settings = self.settings
        length, num_envs = settings.rollout_length, settings.num_envs
        observations = torch.empty(
            (length, num_envs, *self.observations.shape[1:]), dtype=torch.bfloat16, device=self.device
        )
        actions = torch.empty((length, num_envs), dtype=torch.int64, device=self.device)
        log_probabilities, values, rewards, ends = torch.empty((4, length, num_envs), device=self.device)
        for t in range(length):
            observations[t] = self.pixels()
            logits, values[t] = self.network(observations[t])
            log_policy = logits.log_softmax(-1)
            actions[t] = torch.multinomial(log_policy.exp(), 1).squeeze(-1)
            log_probabilities[t] = log_policy.gather(-1, actions[t, :, None]).squeeze(-1)
            self.observations, reward, terminated, truncated, info = self.envs.step(actions[t].cpu().numpy())
            over = terminated | truncated
            rewards[t] = torch.from_numpy(np.sign(reward))
            ends[t] = torch.from_numpy(over | (info["lives"] < self.lives))
            self.lives = info["lives"]
            self.returns += reward
            self.finished.extend(self.returns[over])
            self.returns[over] = 0.0
        _, next_values = self.network(self.pixels())

        advantages = torch.empty_like(values)
        advantage = torch.zeros_like(next_values)
        for t in reversed(range(length)):
            goes_on = 1 - ends[t]
            error = rewards[t] + settings.discount * goes_on * next_values - values[t]
            advantage = error + settings.discount * settings.gae_lambda * goes_on * advantage
            advantages[t], next_values = advantage, values[t]
        rollout = {
            "observations": observations,
            "actions": actions,
            "log_probabilities": log_probabilities,
            "values": values,
            "advantages": advantages,
            "returns": advantages + values,
        }
        return {key: value.flatten(0, 1) for key, value in rollout.items()}

    def pixels(self) -> Tensor:
        """What the games show now, from 0 to 1."""
        return torch.from_numpy(self.observations).to(self.device, torch.bfloat16) / 255

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        settings = self.settings
        logits, values = self.network(batch["observations"])
        log_policy = logits.log_softmax(-1)
        log_probabilities = log_policy.gather(-1, batch["actions"][:, None]).squeeze(-1)
        ratio = (log_probabilities - batch["log_probabilities"]).exp()
        advantages = batch["advantages"]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        value_loss = 0.5 * (values - batch["returns"]).square().mean()
        entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
        return policy_loss + settings.value_weight * value_loss - settings.entropy_weight * entropy


def rom(task: TaskSpec) -> str:
    """ale-py's name of a game."""
    return gymnasium.spec(task.env_id).kwargs["game"]


def export(network: ActorCritic, path: Path, metadata: dict[str, str]) -> None:
    """Write what the policy needs, in half precision."""
    modules = {f"convolutions.{i}": layer for i, layer in enumerate(network.convolutions)}
    modules |= {"layers.0": network.hidden, "layers.1": network.policy}
    tensors = {
        f"{name}.{part}": getattr(module, part).detach().half().cpu().numpy()
        for name, module in modules.items()
        for part in ("weight", "bias")
    }
    strides = ",".join(str(layer.stride[0]) for layer in network.convolutions)
    save_file(tensors, path, {**metadata, "strides": strides})


def start_from(network: ActorCritic, path: Path) -> None:
    """Begin with a network of the package; its value function is learnt anew."""
    tensors = {name: torch.from_numpy(array).float() for name, array in load_file(path).items()}
    names = {"layers.0": "hidden", "layers.1": "policy"}
    renamed = {
        f"{names.get(module, module)}.{part}": tensor
        for (module, part), tensor in ((name.rsplit(".", 1), tensor) for name, tensor in tensors.items())
    }
    network.load_state_dict(renamed, strict=False)


def train(task_name: str, args: argparse.Namespace) -> str:
    """Train the network of one game, or go on with that, and write it; returns a line that says what it reaches."""
    torch.set_num_threads(1)
    task, settings = get_task(task_name), Settings(timesteps=args.timesteps)
    training = Training(task, settings, args.seed, args.device, args.checkpoints / f"{task.name}-{args.seed}.pt")
    if training.timesteps:
        print(f"{task.name}: going on at {training.timesteps:,} timesteps", flush=True)
    elif args.start_from:
        start_from(training.network, args.start_from / f"{task.name}.safetensors")
    begun, first = time.monotonic(), training.timesteps
    while training.timesteps < settings.timesteps:
        training.update()
        if training.timesteps % SAVE_EVERY == 0 or training.timesteps >= settings.timesteps:
            mean = float(np.mean(training.finished)) if training.finished else float("nan")
            training.history.append((training.timesteps, round(mean, 1)))
            training.save()
            speed = (training.timesteps - first) / (time.monotonic() - begun)
            progress = f"{training.timesteps:>10,} timesteps  return {mean:10.1f}  {speed:5.0f} steps/s"
            print(f"{task.name:24} {progress}", flush=True)
    metadata = {
        "task": task.name,
        "environment": task.env_id,
        "algorithm": "PPO (examples/train_expert_atari.py)",
        "hyperparameters": ", ".join(f"{key}={value}" for key, value in asdict(settings).items()),
        "timesteps": str(training.timesteps),
        "returns": json.dumps(training.history),
        "seed": str(args.seed),
        "command": "python examples/train_expert_atari.py "
        f"--tasks {task.name} --timesteps {settings.timesteps} --seed {args.seed}",
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("ale_py", "gymnasium", "torch")
        ),
    }
    path = args.output / f"{task.name}.safetensors" if args.output else weights_path(task)
    score = export_to_play(training.network, task, path, metadata, args.games)
    return f"{task.name}: {score.mean:.1f} over {args.games} games, written to {path}"


def export_to_play(network: ActorCritic, task: TaskSpec, path: Path, metadata: dict[str, str], games: int) -> TaskScore:
    """Write a network that draws its actions from as wide a distribution as does not clearly cost it score.

    Such actions are the better lessons: they show what to do beside the one path that the likeliest ones follow.

    Returns:
        Its score.
    """
    scores = {}
    for temperature in TEMPERATURES:
        export(network, path, {**metadata, "temperature": str(temperature)})
        scores[temperature] = evaluate(read_network(path), task, episodes=games, purpose="select", progress=False)
    best = max(scores.values(), key=lambda score: score.mean)
    temperature, score = next(
        (temperature, score)
        for temperature, score in scores.items()
        if score is best or best.mean - score.mean <= 2 * np.hypot(best.standard_error, score.standard_error)
    )
    export(network, path, {**metadata, "temperature": str(temperature)})
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True, metavar="atari-GAME")
    parser.add_argument("--timesteps", type=int, default=Settings.timesteps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=1, help="games trained at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--games", type=int, default=10, help="played to choose the temperature of its actions")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="networks to go on from")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/experts"))
    parser.add_argument("--output", type=Path, help="folder of the networks; default: the package's")
    args = parser.parse_args()

    tasks = [task.name for task in select_tasks(args.tasks)]
    if others := [name for name in tasks if not name.startswith("atari-")]:
        parser.error(f"expected games of Atari, got {', '.join(others)}")
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    for line in map_unordered(partial(train, args=args), tasks, num_workers=args.num_workers):
        print(line, flush=True)


if __name__ == "__main__":
    main()
