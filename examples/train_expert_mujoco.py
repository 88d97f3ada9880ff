"""Train the network that is the expert of a MuJoCo task, with PPO or SAC from Stable-Baselines3.

    python examples/train_expert_mujoco.py --tasks mujoco-hopper mujoco-walker --num-workers 2

Up to forty times during the training, the network so far is played for some ten thousand timesteps, and written to the
package if it is the best yet. The state of the training is saved too, in --checkpoints: the same command goes on after
an interruption; SAC then fills its memory of transitions anew. At the end the best network is measured on 100 episodes
of unseen seeds, beside the published expert. Needs the extra `train`.
"""

import argparse
import importlib.metadata
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from humanoids import HUMANOIDS, Humanoids, stages_up, way_up
from safetensors.numpy import load_file, save_file
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize
from tqdm import trange

from dataset_builder import TaskSpec, get_task, make_env
from dataset_builder.evaluation import evaluate
from dataset_builder.executors import map_unordered
from dataset_builder.experts.network import OBSERVATION_LIMIT, read_network, weights_path
from dataset_builder.scores import reference_scores
from dataset_builder.shards import whole_file

# Small batches and many epochs, for tasks that are learnt from few timesteps.
SMALL = {"algorithm": "PPO", "num_envs": 16, "n_steps": 128, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}
# Big batches, few epochs and a high learning rate, as in the published experts' Sample Factory (Petrenko et al. 2020):
# the simulator takes nearly all of the time.
BIG = {
    "algorithm": "PPO",
    "num_envs": 64,
    "n_steps": 64,
    "batch_size": 1024,
    "n_epochs": 2,
    "learning_rate": 3e-3,
    "vf_coef": 1.3,
    "max_grad_norm": 3.5,
}
# Half of the largest action as noise, and a cost of actions beyond the bounds: see ExcessCost.
HUMANOID = {
    **BIG,
    "learning_rate": 5e-4,
    "excess_cost": 5e-4,
    "policy_kwargs": {"net_arch": [128, 128], "log_std_init": -1.6},
}
# From a memory of transitions, for what better gradients reach and more timesteps do not. A gradient step for every
# four timesteps of the simulator costs as much as these.
MEMORY = {
    "algorithm": "SAC",
    "num_envs": 16,
    "train_freq": 1,
    "gradient_steps": 4,
    "batch_size": 256,
    "buffer_size": 300_000,
    "learning_starts": 10_000,
    "learning_rate": 1e-3,
    "ent_coef": "auto_0.05",
    "policy_kwargs": {"net_arch": [128, 128]},
}
# A long discount and a smoother advantage let the swimmer see a whole stroke (Franceschetti et al. 2022,
# arXiv 2207.03932); a short one suits the reacher's 50 timesteps.
RECIPES: dict[str, dict[str, Any]] = {
    "mujoco-pendulum": {**SMALL, "timesteps": 200_000},
    "mujoco-doublependulum": {**SMALL, "timesteps": 500_000, "batch_size": 256},
    "mujoco-reacher": {**SMALL, "timesteps": 1_000_000, "gamma": 0.95},
    "mujoco-swimmer": {**SMALL, "timesteps": 1_000_000, "gamma": 0.9999, "gae_lambda": 0.98},
    "mujoco-hopper": {**SMALL, "timesteps": 1_500_000, "policy_kwargs": {"log_std_init": -0.5}},
    # The network of the package had 4 gradient steps in the first million timesteps, and was interrupted twice.
    "mujoco-pusher": {**MEMORY, "timesteps": 2_000_000, "gamma": 0.98, "gradient_steps": 8},
    # Little noise keeps the cheetah off its back; small steps, then, for the noise shrinks (RL Baselines3 Zoo).
    "mujoco-halfcheetah": {
        **SMALL,
        "timesteps": 5_000_000,
        "learning_rate": 2e-4,
        "clip_range": 0.1,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "policy_kwargs": {"log_std_init": -2.0},
    },
    "mujoco-walker": {**BIG, "timesteps": 10_000_000},
    "mujoco-ant": {**BIG, "timesteps": 10_000_000},
    "mujoco-humanoid": {**HUMANOID, "timesteps": 20_000_000},
    # It comes up to its knees and stays so.
    "mujoco-standup": {
        **HUMANOID,
        "timesteps": 9_000_000,
        "learning_rate": 1e-3,
        "num_envs": 128,
        "n_steps": 32,
        "max_episode_steps": 250,
        "ways_up": True,
    },
}
EVALUATIONS, EVALUATION_TIMESTEPS = 40, 10_000
NUM_WAYS = 12  # planned for a humanoid that stands up
# A network that is trained on keeps its weights while its value function, which is new, is learnt. Its actions vary by
# a quarter of the largest one.
HELD_TIMESTEPS, KEPT_NOISE = 300_000, 0.25


class ExcessCost(VecEnvWrapper):
    """Clips actions itself, and takes from the reward a cost of what they were beyond their bounds.

    An algorithm clips them unseen. The means of its policy may then drift so far out that noise changes no action, and
    no more is learnt: of a humanoid's, 92% were there, at six times the bound on average.

    Args:
        envs: with normalised rewards, in whose units the cost is.
        cost: of twice the largest action, for each of the motors; it grows with the square of the excess.
    """

    ROOM = 100  # largest actions that the algorithm leaves as they are

    def __init__(self, envs: VecNormalize, cost: float) -> None:
        low, high = self.ROOM * envs.action_space.low, self.ROOM * envs.action_space.high
        super().__init__(envs, action_space=gymnasium.spaces.Box(low, high))
        self.cost = cost

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        bounds = self.venv.action_space
        executed = np.clip(actions, bounds.low, bounds.high)
        self.excess = np.square((actions - executed) / bounds.high).sum(axis=1)
        self.venv.step_async(executed)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards - self.cost * self.excess, dones, infos


class KeepBest(BaseCallback):
    """Plays the network now and then, keeps the best one in the package's file format, and saves the training.

    Args:
        task: the task.
        path: of the best network's file.
        checkpoint: file of the training's state.
        metadata: of the network's file.
        every: timesteps between evaluations.
    """

    def __init__(self, task: TaskSpec, path: Path, checkpoint: Path, metadata: dict[str, str], every: int) -> None:
        super().__init__()
        self.task, self.path, self.checkpoint, self.metadata, self.every = task, path, checkpoint, metadata, every
        self.best = -np.inf

    def _on_training_start(self) -> None:
        self.next_evaluation = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next_evaluation:
            self.next_evaluation += self.every
            self.evaluate()

    def _on_training_end(self) -> None:
        self.evaluate()

    def evaluate(self) -> None:
        candidate = self.checkpoint.with_suffix(".safetensors")
        export(self.model, candidate, {**self.metadata, "timesteps": str(self.num_timesteps)})
        options = {"episodes": EVALUATION_TIMESTEPS // self.task.horizon, "purpose": "select", "progress": False}
        mean = evaluate(read_network(candidate), self.task, **options).mean
        if mean > self.best:
            self.best = mean
            candidate.replace(self.path)
        print(
            f"{self.task.name:24} {self.num_timesteps:>10,} timesteps  return {mean:10.2f}  best {self.best:10.2f}",
            flush=True,
        )
        save(self.model, self.best, self.checkpoint)


class HoldPolicy(BaseCallback):
    """Keeps the policy as it is for the first timesteps of a training.

    Args:
        timesteps: so many; a training that goes on counts those before.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        learns = self.num_timesteps >= self.timesteps
        for layer in policy_layers(self.model):
            layer.requires_grad_(learns)
        if isinstance(self.model, PPO):
            self.model.policy.log_std.requires_grad_(learns)


def export(model: BaseAlgorithm, path: Path, metadata: dict[str, str]) -> None:
    """Write the policy network and its observation normaliser as safetensors."""
    normaliser = model.get_vec_normalize_env()
    tensors = {
        "observation_mean": normaliser.obs_rms.mean.astype(np.float32),
        "observation_std": np.sqrt(normaliser.obs_rms.var + normaliser.epsilon).astype(np.float32),
    }
    for i, layer in enumerate(policy_layers(model)):
        tensors[f"layers.{i}.weight"] = layer.weight.detach().numpy()
        tensors[f"layers.{i}.bias"] = layer.bias.detach().numpy()
    if isinstance(model, SAC):
        tensors["action_scale"] = model.action_space.high  # the bounds of MuJoCo's actions lie around 0
        metadata = {**metadata, "activation": "relu"}
    save_file(tensors, path, metadata)


def policy_layers(model: BaseAlgorithm) -> list[torch.nn.Linear]:
    if isinstance(model, SAC):
        hidden, last = model.actor.latent_pi, model.actor.mu
    else:
        hidden, last = model.policy.mlp_extractor.policy_net, model.policy.action_net
    return [*(layer for layer in hidden if isinstance(layer, torch.nn.Linear)), last]


def save(model: BaseAlgorithm, best: float, path: Path) -> None:
    """Write what the training needs to go on; the episodes that were being played are begun anew."""
    normaliser = model.get_vec_normalize_env()
    envs = normaliser.venv
    state = {
        "timesteps": model.num_timesteps,
        "best": best,
        "parameters": model.get_parameters(),
        "log_ent_coef": model.log_ent_coef.detach() if isinstance(model, SAC) else None,
        "mastered": torch.from_numpy(envs.success) if isinstance(envs, Humanoids) else None,
        "statistics": {
            name: {field: torch.as_tensor(value) for field, value in vars(statistics).items()}
            for name, statistics in (("obs_rms", normaliser.obs_rms), ("ret_rms", normaliser.ret_rms))
        },
    }
    with whole_file(path) as file:
        torch.save(state, file)


def restore(model: BaseAlgorithm, path: Path) -> float:
    """Go on from what `save` wrote; returns the best return so far."""
    state = torch.load(path, weights_only=True)
    model.num_timesteps = state["timesteps"]
    model.set_parameters(state["parameters"])
    for name, statistics in state["statistics"].items():
        for field, value in statistics.items():
            setattr(getattr(model.get_vec_normalize_env(), name), field, value.numpy())
    if isinstance(model, SAC):
        model.log_ent_coef.data.copy_(state["log_ent_coef"])
        model.learning_starts += model.num_timesteps  # its memory is empty
    if state["mastered"] is not None:
        model.get_vec_normalize_env().venv.success[:] = state["mastered"].numpy()
    return state["best"]


def start_from(model: BaseAlgorithm, path: Path) -> None:
    """Begin with a network of the package instead of a random one; the value function is learnt anew."""
    tensors = load_file(path)
    normaliser = model.get_vec_normalize_env()
    statistics = normaliser.obs_rms
    statistics.mean = tensors["observation_mean"].astype(np.float64)
    statistics.var = np.maximum(tensors["observation_std"].astype(np.float64) ** 2 - normaliser.epsilon, 0)
    statistics.count = 1e12  # so that it stays: the humanoid's network loses half of its return if it moves
    with torch.no_grad():
        for i, layer in enumerate(policy_layers(model)):
            layer.weight.copy_(torch.from_numpy(tensors[f"layers.{i}.weight"]))
            layer.bias.copy_(torch.from_numpy(tensors[f"layers.{i}.bias"]))
        if isinstance(model, PPO):
            model.policy.log_std.copy_(torch.from_numpy(np.log(KEPT_NOISE * normaliser.action_space.high)))


def planned_ways(task: TaskSpec, args: argparse.Namespace) -> np.ndarray:
    """Ways up for a humanoid (ways, timesteps, state), planned in some minutes and kept beside the checkpoints."""
    folder = args.checkpoints / f"{task.name}-{args.seed}-ways"
    for index in trange(NUM_WAYS, desc="ways up", unit="way"):
        if not (path := folder / f"{index}.npy").exists():
            with whole_file(path) as file:
                np.save(file, way_up(task, args.seed, index))
    return np.stack([np.load(folder / f"{index}.npy") for index in range(NUM_WAYS)])


def train(task_name: str, args: argparse.Namespace) -> str:
    """Train the network of one task, or go on with that, and write it; returns a line that says what it reaches."""
    torch.set_num_threads(1)  # the networks are too small to gain from more
    task = get_task(task_name)
    path = args.output / f"{task.name}.safetensors" if args.output else weights_path(task)
    checkpoint = args.checkpoints / f"{task.name}-{args.seed}.pt"
    recipe = {**RECIPES[task.name]}
    if args.timesteps:
        recipe["timesteps"] = args.timesteps
    algorithm = recipe.pop("algorithm")
    command = f"python examples/train_expert_mujoco.py --tasks {task.name} --seed {args.seed}"
    if args.timesteps:
        command += f" --timesteps {args.timesteps}"
    if args.start_from:
        command += f" --start-from {args.start_from}"
    metadata = {
        "task": task.name,
        "environment": task.env_id,
        "algorithm": f"{algorithm} (Stable-Baselines3)",
        "hyperparameters": ", ".join(f"{key}={value}" for key, value in recipe.items()),
        "seed": str(args.seed),
        "command": command,
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("gymnasium", "mujoco", "stable_baselines3", "torch")
        ),
    }

    timesteps, num_envs, learning_rate = (recipe.pop(name) for name in ("timesteps", "num_envs", "learning_rate"))
    if task.name in HUMANOIDS:
        stages = stages_up(task, planned_ways(task, args)) if recipe.pop("ways_up", False) else ()
        options = {"seed": args.seed, "max_episode_steps": recipe.pop("max_episode_steps", None), "stages": stages}
        envs = Humanoids(task, num_envs, **options)
    else:
        envs = make_vec_env(lambda: gymnasium.wrappers.FlattenObservation(make_env(task)), num_envs, seed=args.seed)
    envs = VecNormalize(envs, gamma=recipe.get("gamma", 0.99), clip_obs=OBSERVATION_LIMIT)
    if cost := recipe.pop("excess_cost", None):
        envs = ExcessCost(envs, cost)
    model = {"PPO": PPO, "SAC": SAC}[algorithm](
        "MlpPolicy",
        envs,
        learning_rate=lambda remaining: learning_rate * remaining,
        seed=args.seed,
        device="cpu",
        **recipe,
    )
    keep_best = KeepBest(task, path, checkpoint, metadata, max(timesteps // EVALUATIONS, EVALUATION_TIMESTEPS))
    if checkpoint.exists():
        keep_best.best = restore(model, checkpoint)
        print(f"{task.name}: going on at {model.num_timesteps:,} timesteps", flush=True)
    elif args.start_from:
        start_from(model, args.start_from / f"{task.name}.safetensors")
    callbacks = [keep_best, HoldPolicy(HELD_TIMESTEPS)] if args.start_from else [keep_best]
    if model.num_timesteps < timesteps:
        model.learn(timesteps - model.num_timesteps, callbacks, reset_num_timesteps=False)

    score = evaluate(read_network(path), task, episodes=args.episodes, progress=False)
    reached = f"{score.mean:.2f} ± {score.standard_error:.2f} over {args.episodes} episodes"
    return f"{task.name}: {reached}; published: {reference_scores(task.name).expert:.2f}; written to {path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True, choices=sorted(RECIPES), metavar="mujoco-NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, help="default: the task's own budget")
    parser.add_argument("--num-workers", type=int, default=1, help="tasks trained at once")
    parser.add_argument("--episodes", type=int, default=100, help="of the final measurement")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="networks to go on from")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/experts"))
    parser.add_argument("--output", type=Path, help="folder of the networks; default: the package's")
    args = parser.parse_args()
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    for line in map_unordered(partial(train, args=args), args.tasks, num_workers=args.num_workers):
        print(line, flush=True)


if __name__ == "__main__":
    main()
