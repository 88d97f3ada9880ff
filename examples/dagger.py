"""Build data sets in which a JAT acts in its experts' place, and they say what they would have done (DAgger).

    python examples/dagger.py --model jat --tasks mujoco babyai-boss-level --steps 20000 --output lessons
    python examples/train.py --data data lessons --init-from jat --output better

An agent that imitates gets into situations that no expert gets into, and knows nothing of them. Trained further on
these data and the former ones, it does. All other options are those of `python -m dataset_builder build`, but --seed is
1 by default. Interrupted, the command goes on where it was.
"""

import argparse
import sys

import httpx2
from evaluate import PRECISIONS, AgentPlayer, digest, load_agent

from dataset_builder.__main__ import main as run_builder

SEED = 1  # another one than that of the former data


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or Hub repository of the JAT that acts")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="that it computes in")
    parser.add_argument("--no-prompt", action="store_true", help="do not tell the model each task's instruction")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args, options = parser.parse_known_args()
    try:
        model, _ = load_agent(args.model, "float32", "cpu")
    except (ValueError, OSError, httpx2.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    student = AgentPlayer(
        model=args.model,
        weights=digest(model),
        dtype=args.dtype,
        device="cpu",
        num_envs=1,
        num_threads=1,
        prompted=not args.no_prompt,
        register=tuple(args.register),
    )
    registered = [f"--register={module}" for module in args.register]
    return run_builder(["build", f"--seed={SEED}", *registered, *options], student=student)


if __name__ == "__main__":
    sys.exit(main())
