"""Build data sets in which a JAT acts in its experts' place, and they say what they would have done (DAgger).

    python examples/dagger.py --model jat --tasks mujoco babyai-boss-level --steps 20000 --output lessons
    python examples/train.py --data data lessons --init-from jat --output better

An agent that imitates gets into situations that no expert gets into, and knows nothing of them. Trained further on
these data and the former ones, it does. Everything else is as in `python -m dataset_builder build`; interrupted, the
command goes on where it was.
"""

import argparse
import sys

import httpx2
from evaluate import AgentPlayer, digest, load_agent

from dataset_builder import MissingExpertError, register_from
from dataset_builder.builder import build
from dataset_builder.executors import EXECUTORS, WorkerDiedError
from dataset_builder.experts import EXPERTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub repository of the JAT that acts")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--episodes", type=int, help="of each task, test episodes included")
    amount.add_argument("--steps", type=int, help="timesteps of each task: the fewest episodes that have them")
    parser.add_argument("--output", required=True, help="the folder")
    parser.add_argument("--expert", choices=EXPERTS, help="default: each task's own")
    parser.add_argument("--seed", type=int, default=1, help="base seed; another one than that of the former data")
    parser.add_argument("--num-workers", type=int, default=1, help="processes of the local executor")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="ray: the cluster of RAY_ADDRESS")
    parser.add_argument("--max-episode-steps", type=int, help="truncate episodes after so many timesteps")
    parser.add_argument("--no-prompt", action="store_true", help="do not tell the model each task's instruction")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    try:
        for module in args.register:
            register_from(module)
        model, _ = load_agent(args.model, "float32", "cpu")
        student = AgentPlayer(
            model=args.model,
            weights=digest(model),
            dtype="float32",
            device="cpu",
            num_envs=1,
            num_threads=1,
            prompted=not args.no_prompt,
            register=tuple(args.register),
        )
        build(
            args.tasks,
            args.output,
            episodes=args.episodes,
            steps=args.steps,
            expert=args.expert,
            seed=args.seed,
            num_workers=args.num_workers,
            executor=args.executor,
            max_episode_steps=args.max_episode_steps,
            student=student,
        )
    except (ValueError, OSError, MissingExpertError, WorkerDiedError, httpx2.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
