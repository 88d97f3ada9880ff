"""The command line of the data sets: `python -m dataset_builder list | build`."""

import argparse
import sys
from collections.abc import Sequence

from .builder import build
from .experts import EXPERTS, MissingExpertError, load_expert
from .tasks import select_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dataset_builder", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    lister = commands.add_parser("list", help="list tasks, their environments and experts")
    lister.add_argument("--tasks", nargs="+", default=["all", "text"], help="names, domains, globs or 'all'")

    builder = commands.add_parser("build", help="build data sets, or go on with an interrupted build")
    builder.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    builder.add_argument("--episodes", type=int, required=True, help="of each task, test episodes included")
    builder.add_argument("--output", required=True, help="the folder")
    builder.add_argument("--expert", choices=EXPERTS, help="default: each task's own")
    builder.add_argument("--seed", type=int, default=0, help="base seed of all episodes")
    builder.add_argument("--num-workers", type=int, default=1, help="processes")
    builder.add_argument("--max-episode-steps", type=int, help="truncate episodes after so many timesteps")
    args = parser.parse_args(arguments)

    try:
        if args.command == "list":
            list_tasks(args.tasks)
        else:
            folder = build(
                args.tasks,
                args.output,
                episodes=args.episodes,
                expert=args.expert,
                seed=args.seed,
                num_workers=args.num_workers,
                max_episode_steps=args.max_episode_steps,
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
                expert = task.expert
            except MissingExpertError:
                expert = "missing"
        print(f"{task.name:40} {task.env_id:45} {expert:9} {task.instruction}")


if __name__ == "__main__":
    sys.exit(main())
