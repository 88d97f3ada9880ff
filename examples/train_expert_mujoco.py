"""Train the network that is the expert of a MuJoCo task, with PPO from Stable-Baselines3.

    python examples/train_expert_mujoco.py --task mujoco-hopper

Every --evaluate-every timesteps the network so far is played for a few episodes, and written to the package if it is
the best yet: an interrupted training has lost nothing but its last stretch. At the end the best one is measured on 100
episodes of unseen seeds, beside the published expert. Needs the extra `train`.
"""

import argparse
import importlib.metadata
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import torch
from safetensors.numpy import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dataset_builder import make_env, rollout, select_tasks
from dataset_builder.experts.network import OBSERVATION_LIMIT, NetworkPolicy, weights_path
from dataset_builder.rollout import episode_seed
from dataset_builder.scores import reference_scores

# What differs from DEFAULTS below, by task. A long discount and a smoother advantage let the swimmer see a whole
# stroke (Franceschetti et al. 2022, arXiv 2207.03932); a short one suits the reacher's 50 steps.
HYPERPARAMETERS = {
    "mujoco-pendulum": {"timesteps": 200_000},
    "mujoco-doublependulum": {"timesteps": 500_000, "batch_size": 256},
    "mujoco-reacher": {"timesteps": 1_000_000, "gamma": 0.95},
    "mujoco-swimmer": {"timesteps": 1_000_000, "gamma": 0.9999, "gae_lambda": 0.98},
    "mujoco-hopper": {"timesteps": 1_500_000, "log_std_init": -0.5},
}
DEFAULTS = {"timesteps": 3_000_000, "batch_size": 64, "gamma": 0.99, "gae_lambda": 0.95, "log_std_init": 0.0}


class KeepBest(BaseCallback):
    """Plays the network now and then and keeps the best one in the package's file format."""

    def __init__(self, task_name: str, path: Path, metadata: dict[str, str], every: int, episodes: int) -> None:
        super().__init__()
        self.task_name, self.path, self.metadata, self.every, self.episodes = task_name, path, metadata, every, episodes
        self.best = -np.inf
        self.next_evaluation = every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_evaluation:
            self.next_evaluation += self.every
            self.evaluate()
        return True

    def _on_training_end(self) -> None:
        self.evaluate()

    def evaluate(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            candidate = Path(folder) / self.path.name
            export(self.model, candidate, {**self.metadata, "timesteps": str(self.num_timesteps)})
            returns = play_returns(self.task_name, candidate, self.episodes, purpose="select")
            mean = float(np.mean(returns))
            if mean > self.best:
                self.best = mean
                candidate.replace(self.path)
        print(f"{self.num_timesteps:>9,} timesteps  return {mean:10.2f}  best {self.best:10.2f}", flush=True)


def export(model: PPO, path: Path, metadata: dict[str, str]) -> None:
    """Write the policy network and its observation normaliser as safetensors."""
    normaliser = model.get_vec_normalize_env()
    linear = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    tensors = {
        "observation_mean": normaliser.obs_rms.mean.astype(np.float32),
        "observation_std": np.sqrt(normaliser.obs_rms.var + normaliser.epsilon).astype(np.float32),
    }
    for i, layer in enumerate([*linear, model.policy.action_net]):
        tensors[f"layers.{i}.weight"] = layer.weight.detach().cpu().numpy()
        tensors[f"layers.{i}.bias"] = layer.bias.detach().cpu().numpy()
    save_file(tensors, path, metadata)


def play_returns(task: str, path: Path, episodes: int, purpose: str) -> list[float]:
    policy = NetworkPolicy(path)
    with make_env(task) as env:
        return [
            rollout(env, policy, episode_seed(task, i, base_seed=0, purpose=purpose)).total_reward
            for i in range(episodes)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="name of a MuJoCo task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, help="default: the task's own budget")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--evaluate-every", type=int, default=50_000)
    parser.add_argument("--evaluate-episodes", type=int, default=20)
    parser.add_argument("--output", type=Path, help="default: the expert's file in the package")
    args = parser.parse_args()

    (task,) = select_tasks(args.task)
    path = args.output or weights_path(task)
    settings = {**DEFAULTS, **HYPERPARAMETERS.get(task.name, {})}
    timesteps = args.timesteps or settings["timesteps"]
    metadata = {
        "task": task.name,
        "environment": task.env_id,
        "algorithm": "PPO (Stable-Baselines3)",
        "hyperparameters": ", ".join(f"{key}={value}" for key, value in settings.items()),
        "seed": str(args.seed),
        "command": f"python examples/train_expert_mujoco.py --task {task.name} --seed {args.seed}",
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("gymnasium", "mujoco", "stable_baselines3", "torch")
        ),
    }

    torch.set_num_threads(1)  # the networks are too small to gain from more
    envs = make_vec_env(
        lambda: gymnasium.wrappers.FlattenObservation(make_env(task)), n_envs=args.num_envs, seed=args.seed
    )
    model = PPO(
        "MlpPolicy",
        VecNormalize(envs, gamma=settings["gamma"], clip_obs=OBSERVATION_LIMIT),
        learning_rate=lambda remaining: 3e-4 * remaining,
        n_steps=2048 // args.num_envs,
        batch_size=settings["batch_size"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        policy_kwargs={"log_std_init": settings["log_std_init"]},
        seed=args.seed,
        device="cpu",
    )
    model.learn(timesteps, KeepBest(task.name, path, metadata, args.evaluate_every, args.evaluate_episodes))

    returns = play_returns(task.name, path, episodes=100, purpose="evaluate")
    error = np.std(returns, ddof=1) / np.sqrt(len(returns))
    published = reference_scores(task.name).expert
    print(f"{task.name}: {np.mean(returns):.2f} +/- {error:.2f} over 100 episodes; published expert: {published:.2f}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
