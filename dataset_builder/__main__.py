"""The command line of the data sets: `python -m dataset_builder list | build | score | verify | push`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from .builder import build
from .episodes import task_features
from .evaluation import Player
from .executors import EXECUTORS, WorkerDiedError
from .experts import EXPERTS, MissingExpertError, load_expert
from .measuring import DEFAULT_EPISODES, describe_scores, measure, plan_trials, write_page
from .publish import push, push_model
from .scores import SCORES, read_scores
from .shards import is_local
from .tasks import TaskSpec, register_from, select_tasks
from .verify import verdict_line, verify


def main(arguments: Sequence[str] | None = None, *, student: Player | None = None) -> int:
    """Run a command. In what it builds a student may act, see `builder.build`."""
    parser = argparse.ArgumentParser(prog="python -m dataset_builder", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    lister = commands.add_parser("list", parents=[common], help="list tasks, their environments, experts and columns")
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
    builder.add_argument(
        "--action-noise",
        type=float,
        default=0.0,
        metavar="SCALE",
        help="execute about every second episode's actions with so much noise (0.3, say) but store the expert's",
    )

    scorer = commands.add_parser(
        "score", parents=[common], help="measure random and expert policies, or go on with that, and print the table"
    )
    scorer.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    scorer.add_argument(
        "--policies",
        nargs="+",
        choices=["expert", *EXPERTS],
        default=["random", "expert"],
        help="expert: each task's own",
    )
    scorer.add_argument(
        "--episodes", type=int, help=f"of each task; default: {DEFAULT_EPISODES}, of a planner or an explorer 3"
    )
    scorer.add_argument("--seed", type=int, default=0, help="base seed; no data set has these starts")
    scorer.add_argument("--num-workers", type=int, default=1, help="processes of the local executor")
    scorer.add_argument("--executor", choices=EXECUTORS, default="local")
    scorer.add_argument("--again", action="store_true", help="measure again what the file holds")
    scorer.add_argument("--output", type=Path, default=Path(SCORES), help="the file that keeps the scores")
    scorer.add_argument("--page", type=Path, help="write all that the file holds as a page, too")

    verifier = commands.add_parser("verify", parents=[common], help="read data sets back and play episodes again")
    verifier.add_argument("folder")
    verifier.add_argument("--tasks", nargs="+", default=["all"], help="of the folder's")
    verifier.add_argument("--replays", type=int, default=3, help="episodes of each task that are played again")
    verifier.add_argument("--num-workers", type=int, default=1, help="processes")

    pusher = commands.add_parser("push", parents=[common], help="publish data sets, or a model, on the Hub")
    pusher.add_argument("folder", help="of data sets, or of a model")
    pusher.add_argument("--repo-id", required=True, metavar="USER/NAME", help="made if it is not there")
    pusher.add_argument("--tasks", nargs="+", default=["all"], help="of the folder's; others in the repository stay")
    pusher.add_argument("--private", action="store_true", default=None, help="if it is made")
    pusher.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    args = parser.parse_args(arguments)

    try:
        for module in args.register:
            register_from(module)
        if args.command == "list":
            list_tasks(args.tasks)
        elif args.command == "score":
            score_experts(args)
        elif args.command == "verify":
            return verify_folder(args)
        elif args.command == "push":
            options = {"private": args.private, "create_pr": args.create_pr}
            if (Path(args.folder) / "config.json").exists():
                print(push_model(args.folder, args.repo_id, **options))
            else:
                print(push(args.folder, args.repo_id, tasks=args.tasks, **options))
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
                action_noise=args.action_noise,
                student=student,
                allow_local=args.allow_local,
            )
            print(f"Built in {folder}; read it with {reading(folder, select_tasks(args.tasks)[0])}")
    except (ValueError, WorkerDiedError, MissingExpertError, HfHubHTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def reading(folder: Path, task: TaskSpec) -> str:
    """How a data set is loaded."""
    if is_local(folder):
        return f'datasets.load_dataset("{folder}", "{task.name}")'
    return f'datasets.load_dataset("parquet", data_files="{folder}/{task.name}/train-*.parquet")'


def score_experts(args: argparse.Namespace) -> None:
    tasks = [task for task in select_tasks(args.tasks) if task.domain != "text"]
    trials = plan_trials(tasks, args.policies, args.episodes, args.seed)
    options = {"num_workers": args.num_workers, "executor": args.executor, "again": args.again}
    scores = measure(trials, args.output, **options)
    print(describe_scores(scores))
    print(f"written: {args.output}")
    if args.page:
        write_page(list(read_scores(args.output).values()), args.page)
        print(f"written: {args.page}")


def verify_folder(args: argparse.Namespace) -> int:
    """1 if anything is wrong."""
    verdicts = verify(args.folder, args.tasks, replays=args.replays, num_workers=args.num_workers)
    for verdict in verdicts:
        print(verdict_line(verdict))
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    for note in [note for verdict in verdicts for note in verdict.notes]:
        print(f"note: {note}")
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(verdicts)} tasks verified: {len(faults)} faults")
    return 1 if faults else 0


def list_tasks(patterns: list[str]) -> None:
    lines = []
    for task in select_tasks(patterns):
        expert = "-"
        if task.domain != "text":
            try:
                load_expert(task)
                expert = task.expert_name
            except MissingExpertError:
                expert = "missing"
        columns = ", ".join(task_features(task))
        lines.append(f"{task.name:40} {task.env_id:45} {expert:9} {columns:90} {task.instruction}\n")
    with suppress(BrokenPipeError):  # piped into a reader that has seen enough, such as head
        sys.stdout.writelines(lines)
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
