"""Evaluate a JAT, or experts, in the environments of tasks.

    python examples/evaluate.py --model jat --tasks metaworld-reach mujoco-pendulum --episodes 20 --num-envs 10
    python examples/evaluate.py --policy expert --tasks babyai --episodes 100 --num-workers 2 --output experts

Prints a table of the returns beside the published random and expert scores. The folder --output, by default that of a
local model, then holds `evaluation.json`, with the scores, and `evaluation.jsonl`, with every episode as soon as it is
finished: interrupted, or given more tasks or episodes, the command goes on from there. The starts are in no data set.
However many environments, processes or machines play them, the episodes are the same but for rounding.
"""

import argparse
import hashlib
import shlex
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import MissingExpertError, TaskSpec, load_episodes, register_from, select_tasks
from dataset_builder.evaluation import (
    AgentPolicy,
    ExpertPlayer,
    Trial,
    read_log,
    run_trials,
)
from dataset_builder.executors import EXECUTORS, check_executor, keep_freed_memory
from dataset_builder.mixing import cut_window
from dataset_builder.report import EVALUATION, Evaluation, format_evaluation, write_evaluation

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@lru_cache(maxsize=1)
def load_agent(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A model and its processor."""
    return AutoModel.from_pretrained(name, dtype=dtype).to(device), AutoProcessor.from_pretrained(name)


@lru_cache(maxsize=1)
def load_demonstration(data: str, task: TaskSpec, timesteps: int) -> dict[str, Any]:
    """The end of the first test episode, as a training with --demonstration-fraction shows the end of some."""
    episodes = load_episodes(data, task, split="test")
    return cut_window(episodes, 0, int(episodes.lengths[0]) - timesteps, timesteps).columns


@dataclass(frozen=True)
class AgentPlayer:
    """A JAT, in whatever process plays it.

    Args:
        model: folder or Hub repository.
        weights: their digest.
        dtype: that it computes in, a name of torch's.
        device: where it computes.
        num_envs: environments that it plays at once.
        num_threads: of its process.
        deterministic, context_window, prompted, remembered: see [`AgentPolicy`].
        demonstrations: folder or Hub repository of data sets; of each task the end of an episode is shown.
        demonstration_steps: how many timesteps of it.
        register: modules or files that register tasks.
    """

    model: str
    weights: str
    dtype: str
    device: str
    num_envs: int
    num_threads: int
    deterministic: bool = False
    context_window: int | None = None
    prompted: bool = False
    remembered: float = 0.5
    demonstrations: str | None = None
    demonstration_steps: int = 64
    register: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Of the policy."""
        return {name: getattr(self, name) for name in ("deterministic", "context_window", "prompted", "remembered")}

    def described(self) -> dict[str, Any]:
        return {
            "policy": "jat",
            "weights": self.weights,
            "dtype": self.dtype,
            **self.options,
            "demonstrations": self.demonstrations and [self.demonstrations, self.demonstration_steps],
        }

    def load(self, task: TaskSpec) -> AgentPolicy:
        for module in self.register:
            register_from(module)
        torch.set_num_threads(self.num_threads)
        keep_freed_memory()
        model, processor = load_agent(self.model, self.dtype, self.device)
        demonstrate = self.demonstrate if self.demonstrations else None
        return AgentPolicy(model, processor, **self.options, demonstrate=demonstrate)

    def demonstrate(self, task: TaskSpec) -> dict[str, Any]:
        return load_demonstration(self.demonstrations, task, self.demonstration_steps)


def digest(model: torch.nn.Module) -> str:
    """Of a model's weights, in whatever files they lie."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def check_log(log: Path, weights: str | None) -> None:
    """Refuse a folder that holds the episodes of another model.

    Raises:
        ValueError: naming it.
    """
    others = {described.get("weights") for described, _ in read_log(log)} - {weights}
    if others:
        found = ", ".join(sorted(f"weights {other}" if other else "experts" for other in others))
        raise ValueError(
            f"{log} holds episodes of {found}, this is {f'weights {weights}' if weights else 'an expert'}: remove that "
            "file to evaluate anew, or choose another --output"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    player = parser.add_mutually_exclusive_group(required=True)
    player.add_argument("--model", help="folder or Hub repository of a JAT")
    player.add_argument("--policy", choices=["expert", "random"], help="instead of a model")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    parser.add_argument("--episodes", type=int, default=20, help="of each task")
    parser.add_argument("--num-envs", type=int, default=10, help="environments that the model plays at once")
    parser.add_argument("--num-workers", type=int, default=1, help="processes of the local executor")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="ray: the cluster of RAY_ADDRESS")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest of discrete actions")
    parser.add_argument("--prompt", action="store_true", help="tell the model each task's instruction")
    parser.add_argument("--demonstrations", metavar="DATA", help="show it an episode of each task from these data sets")
    parser.add_argument("--demonstration-steps", type=int, default=64, help="timesteps of those, the last ones")
    parser.add_argument("--context-window", type=int, help="timesteps that the model looks back at most")
    parser.add_argument(
        "--remembered",
        type=float,
        default=0.5,
        help="share of a full window that the model remembers; 0: it forgets all",
    )
    parser.add_argument("--max-episode-steps", type=int, help="truncate episodes after so many timesteps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: a local model's folder, or 'evaluation'")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)
    local_model = Path(args.model) if args.model and Path(args.model).is_dir() else None
    output = args.output or local_model or Path("evaluation")
    log = output / "evaluation.jsonl"

    try:
        tasks = [task for task in select_tasks(args.tasks) if task.domain != "text"]
        check_executor(args.executor)
        players: list[AgentPlayer | ExpertPlayer]
        if args.model:
            model, _ = load_agent(args.model, "float32", "cpu")
            agent = AgentPlayer(
                model=args.model,
                weights=digest(model),
                dtype=args.dtype,
                device=args.device,
                num_envs=min(args.num_envs, args.episodes),
                num_threads=max(1, torch.get_num_threads() // args.num_workers),
                deterministic=args.deterministic,
                context_window=args.context_window,
                prompted=args.prompt,
                remembered=args.remembered,
                demonstrations=args.demonstrations,
                demonstration_steps=args.demonstration_steps,
                register=tuple(args.register),
            )
            check_log(log, agent.weights)
            players = [agent] * len(tasks)
        else:
            check_log(log, None)
            players = [ExpertPlayer.of(task, args.policy) for task in tasks]
    except (ValueError, MissingExpertError, OSError, httpx2.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    trials = [
        Trial(task, player, args.episodes, args.seed, args.max_episode_steps)
        for task, player in zip(tasks, players, strict=True)
    ]
    found = dict(run_trials(trials, log, num_workers=args.num_workers, executor=args.executor))
    versions = {name: version for trial in trials for name, version in trial.versions.items()}
    about = {
        "policy": args.model or args.policy,
        "agent": agent.options if args.model else {},
        "command": "python " + shlex.join(["examples/evaluate.py", *sys.argv[1:]]),
        "max_episode_steps": args.max_episode_steps,
        "versions": versions,
    }
    evaluation = Evaluation([found[trial] for trial in trials], about)
    print(format_evaluation(evaluation))
    write_evaluation(evaluation, output / EVALUATION)
    print(f"written: {output / EVALUATION}; plots, a page and a card: python examples/report.py {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
