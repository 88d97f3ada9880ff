"""The whole path in a few minutes: data, training, evaluation, replay and report. `make demo` runs it.

    python examples/demo.py --output demo
    python examples/demo.py --recipe twelve --output twelve --repo-id USER/jat    # half an hour of training or more

Runs, one after another, the commands that you would type yourself, and stops at the first one that fails. First
jat-mini, the agent that comes with the package, plays a task of each domain; then a new one is trained, on one task of
each domain or on three. Run again, it keeps what is finished.
"""

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

JAT_MINI = "modeling_jat/agents/jat-mini"
SHOWN = ("babyai-go-to-obj", "metaworld-door-open", "mujoco-swimmer", "atari-freeway")


@dataclass(frozen=True)
class Recipe:
    """What the demo builds, and how it trains.

    Args:
        builds: tasks, and the options with which their data are built.
        training: options of examples/train.py.
        remark: what is said at the end.
    """

    builds: dict[tuple[str, ...], str]
    training: str
    remark: str

    @property
    def tasks(self) -> list[str]:
        return [task for tasks in self.builds for task in tasks]


RECIPES = {
    "four": Recipe(
        builds={
            ("babyai-go-to-red-ball-no-dists",): "--episodes 400",
            ("metaworld-reach",): "--episodes 100",
            ("mujoco-reacher",): "--episodes 400",
            ("atari-pong",): "--episodes 8 --max-episode-steps 500",
        },
        training="""
            --hidden-size 128 --num-layers 4 --num-heads 4 --window 64 --image-window 8
            --steps 1400 --gradient-accumulation 2 --task-weights metaworld-reach=2 atari-pong=0.1
        """,
        remark="Pong is there to show the path: a few thousand steps of data do not teach the game.",
    ),
    "twelve": Recipe(
        builds={
            ("babyai-go-to-red-ball-no-dists", "babyai-go-to-red-ball", "babyai-open-red-door"): "--episodes 500",
            (
                "metaworld-reach",
                "metaworld-door-close",
                "metaworld-button-press-topdown",
            ): "--episodes 60 --action-noise 0.3",
            ("mujoco-reacher",): "--episodes 400",
            ("mujoco-swimmer", "mujoco-pendulum"): "--episodes 40 --action-noise 0.2",
            ("atari-boxing", "atari-crazyclimber", "atari-pong"): "--episodes 12",
        },
        training="""
            --hidden-size 128 --num-layers 4 --num-heads 4 --window 64 --image-window 8
            --muon --learning-rate 2e-3 --steps 2000 --gradient-accumulation 4
            --task-weights babyai-go-to-red-ball-no-dists=0.5 mujoco-swimmer=0.5
            metaworld-reach=2 metaworld-door-close=2 metaworld-button-press-topdown=2 atari-pong=2
        """,
        remark="Half an hour is little: more steps, and more episodes of the games, make all of them better.",
    ),
}


def steps(recipe: Recipe, output: Path, repo_id: str | None) -> list[tuple[str, list[str]]]:
    """What each command does, and the command."""
    data, model, python = str(output / "data"), str(output / "jat"), [sys.executable]
    shown = ["--model", JAT_MINI, "--prompt", "--tasks", *SHOWN, "--output"]
    build = [*python, "-m", "dataset_builder", "build", "--output", data, "--num-workers", "2"]
    evaluate = [*python, "examples/evaluate.py", "--num-envs", "20", "--num-workers", "2"]
    found = [
        (
            "jat-mini, which comes with the package, plays a task of each domain",
            [*evaluate, "--episodes", "10", *shown, str(output / "jat-mini")],
        ),
        ("It is filmed", [*python, "examples/play.py", *shown, str(output / "jat-mini" / "replay.mp4")]),
    ]
    found += [
        (f"Experts play {', '.join(tasks)}", [*build, "--tasks", *tasks, *options.split()])
        for tasks, options in recipe.builds.items()
    ]
    found += [
        (
            "A new JAT, smaller still, learns all tasks from the data",
            [*python, "examples/train.py", "--data", data, "--output", model, *recipe.training.split()],
        ),
        (
            "It is evaluated in all environments, on starts that are in no data",
            [*evaluate, "--model", model, "--tasks", *recipe.tasks],
        ),
        ("It is filmed, and all that was measured becomes a page and a card", [*python, "examples/report.py", model]),
    ]
    if repo_id:
        found.append(("It goes to the Hub", [*python, "-m", "dataset_builder", "push", model, "--repo-id", repo_id]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="four", help="how many tasks")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the data and the model")
    parser.add_argument("--repo-id", metavar="USER/NAME", help="publish the model on the Hub")
    args = parser.parse_args()
    recipe, output = RECIPES[args.recipe], args.output

    begun = time.monotonic()
    for what, command in steps(recipe, output, args.repo_id):
        print(f"\n== {what} ({time.monotonic() - begun:.0f} s)\n$ {shlex.join(['python', *command[1:]])}", flush=True)
        if status := subprocess.run(command, check=False).returncode:
            print(f"\nThe demo stopped: the last command failed with status {status}.", file=sys.stderr)
            return status
    print(
        f"""
Done in {time.monotonic() - begun:.0f} s. Where to look:
  {output}/jat-mini/replay.mp4    jat-mini at play; {JAT_MINI}/README.md is its card
  {output}/data                   the data sets; datasets.load_dataset("{output}/data", "metaworld-reach")
  {output}/jat                    the model (safetensors), its processor and their code
  {output}/jat/report/index.html  tables, plots and videos on one page
  {output}/jat/README.md          the model card, as the Hub shows it
  {output}/jat/replay.mp4         the replay
{recipe.remark}
"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
