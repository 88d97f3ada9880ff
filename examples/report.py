"""Make of an evaluation all that a person would look at: plots, a page, a replay, and for a model its card.

    python examples/evaluate.py --model jat --tasks mujoco babyai
    python examples/report.py jat
    python -m dataset_builder push jat --repo-id USER/jat

Of the folder with `evaluation.json` it makes `report/index.html`, one file with sortable tables, plots and a video of
each domain; `report/scores.csv` and the plots; and if it is a model's folder `replay.mp4`, which the Hub shows beside
the model, and the card. A few tasks of each domain are filmed; what cannot be rendered here is left out, and the reason
said: MuJoCo and Meta-World need OSMesa (`apt-get install libosmesa6`) or EGL. Needs the extra `eval`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import get_task, register_from
from dataset_builder.cards import FRAME, REPLAY, REPORT, write_model_card
from dataset_builder.evaluation import AgentPolicy
from dataset_builder.replay import film, write_replay
from dataset_builder.report import EVALUATION, Evaluation, read_evaluation, write_report


def film_domains(evaluation: Evaluation, folder: Path, num_tasks: int, max_episode_steps: int) -> dict[str, Path]:
    """Film the first episode of some tasks of each domain: a video of each domain, and one of all for the Hub."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    agent = AgentPolicy(model, AutoProcessor.from_pretrained(folder), **evaluation.about.get("agent", {}))
    videos, everything = {}, []
    for domain, scores in evaluation.domains.items():
        chosen = np.unique(np.linspace(0, len(scores) - 1, num_tasks).astype(int))
        tasks = [get_task(scores[index].task) for index in chosen]
        clips = list(film(tasks, lambda task: agent, max_episode_steps=max_episode_steps).values())
        if clips:
            videos[domain] = folder / REPORT / f"{domain}.mp4"
            write_replay(clips, videos[domain])
            everything += clips
    if everything:
        write_replay(everything, folder / REPLAY)
        Image.fromarray(everything[0][0]).save(folder / REPORT / FRAME)
    return videos


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where examples/evaluate.py wrote evaluation.json")
    parser.add_argument("--filmed", type=int, default=4, help="tasks of each domain")
    parser.add_argument("--max-episode-steps", type=int, default=300, help="film so many timesteps at most")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)
    try:
        evaluation = read_evaluation(args.folder / EVALUATION)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    is_model = (args.folder / "config.json").exists()
    report = args.folder / REPORT
    report.mkdir(exist_ok=True)
    videos = film_domains(evaluation, args.folder, args.filmed, args.max_episode_steps) if is_model else {}
    state = args.folder / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.exists() else []
    print(f"written: {write_report(evaluation, report, videos=videos, history=history)}")
    if is_model:
        print(f"written: {write_model_card(args.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
