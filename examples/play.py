"""Film a JAT, or an expert, at its tasks: one episode each, side by side.

    python examples/play.py --model jat --tasks metaworld-reach mujoco-pendulum --output replay.mp4

A task that this machine cannot render is left out, and the reason said: MuJoCo and Meta-World need OSMesa
(`apt-get install libosmesa6`) or EGL. Needs the extra `eval`.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import load_expert, register_from, select_tasks
from dataset_builder.evaluation import AgentPolicy
from dataset_builder.replay import film, write_replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    player = parser.add_mutually_exclusive_group(required=True)
    player.add_argument("--model", help="folder or Hub repository of a JAT")
    player.add_argument("--policy", choices=["expert", "random"], help="instead of a model")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    parser.add_argument("--output", type=Path, default=Path("replay.mp4"))
    parser.add_argument("--prompt", action="store_true", help="tell the model each task's instruction")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest of discrete actions")
    parser.add_argument("--max-episode-steps", type=int, default=300, help="film so many timesteps at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)

    agent = None
    if args.model:
        model = AutoModel.from_pretrained(args.model, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(args.model)
        agent = AgentPolicy(model, processor, deterministic=args.deterministic, prompted=args.prompt)

    clips = film(
        select_tasks(args.tasks),
        lambda task: agent or load_expert(task, None if args.policy == "expert" else "random"),
        seed=args.seed,
        max_episode_steps=args.max_episode_steps,
    )
    if not clips:
        print("error: none of the tasks can be rendered here", file=sys.stderr)
        return 1
    write_replay(list(clips.values()), args.output)
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
