"""The command line of the data sets: `python -m dataset_builder list | build`."""

import argparse
import sys
from collections.abc import Sequence

from .builder import build
from .executors import EXECUTORS
from .experts import EXPERTS, MissingExpertError, load_expert
from .tasks import register_from, select_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dataset_builder", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    lister = commands.add_parser("list", parents=[common], help="list tasks, their environments and experts")
    lister.add_argument("--tasks", nargs="+", default=["all", "text"], help="names, domains, globs or 'all'")

    builder = commands.add_parser("build", parents=[common], help="build data sets, or go on with an interrupted build")
    builder.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    amount = builder.add_mutually_exclusive_group(required=True)
    amount.add_argument("--episodes", type=int, help="of each task, test episodes included; rows of a text subset")
    amount.add_argument("--steps", type=int, help="timesteps of each task: the fewest episodes that have them")
    builder.add_argument("--output", required=True, help="the folder")
    builder.add_argument("--expert", choices=EXPERTS, help="default: each task's own")
    builder.add_argument("--seed", type=int, default=0, help="base seed of all episodes")
    builder.add_argument("--num-workers", type=int, default=1, help="processes of the local executor")
    builder.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="ray: on the cluster that RAY_ADDRESS names"
    )
    builder.add_argument(
        "--allow-local", action="store_true", help="let images come from addresses of this machine and its network"
    )
    builder.add_argument("--max-episode-steps", type=int, help="truncate episodes after so many timesteps")
    args = parser.parse_args(arguments)

    try:
        for module in args.register:
            register_from(module)
        if args.command == "list":
            list_tasks(args.tasks)
        else:
            folder = build(
                args.tasks,
                args.output,
                episodes=args.episodes,
                steps=args.steps,
                expert=args.expert,
                seed=args.seed,
                num_workers=args.num_workers,
                executor=args.executor,
                max_episode_steps=args.max_episode_steps,
                allow_local=args.allow_local,
            )
            task = select_tasks(args.tasks)[0]
            print(f'Built in {folder}; read it with datasets.load_dataset("{folder}", "{task.name}")')
    except (ValueError, MissingExpertError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def list_tasks(patterns: list[str]) -> None:
    for task in select_tasks(patterns):
        expert = "-"
        if task.domain != "text":
            try:
                load_expert(task)
                expert = task.expert_name
            except MissingExpertError:
                expert = "missing"
        print(f"{task.name:40} {task.env_id:45} {expert:9} {task.instruction}")


if __name__ == "__main__":
    sys.exit(main())
