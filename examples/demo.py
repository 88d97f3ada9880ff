"""The whole path in a few minutes: data, training, replay, evaluation. `make demo` runs it.

    python examples/demo.py --output demo

Runs, one after another, the commands that you would type yourself, on one task of each domain, and stops at the first
one that fails. Run again, it keeps what is finished.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

TASKS = ["babyai-go-to-red-ball-no-dists", "metaworld-reach", "mujoco-reacher", "atari-pong"]
# Episodes of each; those of Pong are cut short: too little data to learn the game.
EPISODES = {"babyai-go-to-red-ball-no-dists": 400, "metaworld-reach": 100, "mujoco-reacher": 400, "atari-pong": 8}
PONG_STEPS = 500
TRAINING = """
    --hidden-size 128 --num-layers 4 --num-heads 4 --window 64 --image-window 8
    --steps 1400 --gradient-accumulation 2 --task-weights metaworld-reach=2 atari-pong=0.1
""".split()


def steps(output: Path) -> list[tuple[str, list[str]]]:
    """What each command does, and the command."""
    data, model, python = str(output / "data"), str(output / "jat"), [sys.executable]
    build = [*python, "-m", "dataset_builder", "build", "--output", data, "--num-workers", "2"]
    builds = []
    for task in TASKS:
        command = [*build, "--tasks", task, "--episodes", str(EPISODES[task])]
        if task == "atari-pong":
            command += ["--max-episode-steps", str(PONG_STEPS)]
        builds.append((f"An expert plays {task}", command))
    return [
        *builds,
        (
            "One small JAT learns all four tasks from the data",
            [*python, "examples/train.py", "--data", data, "--output", model, *TRAINING],
        ),
        (
            "It is evaluated in all four environments, on starts that are in no data",
            [*python, "examples/evaluate.py", "--model", model, "--tasks", *TASKS, "--num-envs", "20"],
        ),
        ("It is filmed, and all that was measured becomes a page and a card", [*python, "examples/report.py", model]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the data and the model")
    output = parser.parse_args().output

    begun = time.monotonic()
    for what, command in steps(output):
        print(f"\n== {what} ({time.monotonic() - begun:.0f} s)\n$ {shlex.join(['python', *command[1:]])}", flush=True)
        if status := subprocess.run(command, check=False).returncode:
            print(f"\nThe demo stopped: the last command failed with status {status}.", file=sys.stderr)
            return status
    print(
        f"""
Done in {time.monotonic() - begun:.0f} s. Where to look:
  {output}/data           four data sets; datasets.load_dataset("{output}/data", "metaworld-reach")
  {output}/jat            the model (safetensors), its processor and their code
  {output}/jat/report/index.html  tables, plots and videos on one page
  {output}/jat/README.md  the model card, as the Hub shows it
  {output}/jat/replay.mp4 the replay
Pong is there to show the path: a few thousand steps of data do not teach the game.
"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
