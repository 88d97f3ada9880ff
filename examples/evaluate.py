"""Evaluate a JAT, or an expert, in the environments of its tasks.

    python examples/evaluate.py --model jat --tasks metaworld-reach mujoco-pendulum --episodes 20 --num-envs 10
    python examples/evaluate.py --policy expert --tasks babyai --episodes 100

Prints a table of the returns beside the published random and expert scores. With a local model, its folder then holds
`evaluation.json`, with every episode's return, and a card with the table.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

import modeling_jat  # noqa: F401  registers the model
import processing_jat  # noqa: F401  registers the processor
from dataset_builder import load_expert, register_from, select_tasks
from dataset_builder.cards import write_model_card
from dataset_builder.evaluation import AgentPolicy, evaluate, format_table, score_rows, write_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    player = parser.add_mutually_exclusive_group(required=True)
    player.add_argument("--model", help="folder or Hub repository of a JAT")
    player.add_argument("--policy", choices=["expert", "random"], help="instead of a model")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, domains, globs or 'all'")
    parser.add_argument("--episodes", type=int, default=20, help="of each task")
    parser.add_argument("--num-envs", type=int, default=10, help="environments that the model plays at once")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest of discrete actions")
    parser.add_argument("--prompt", action="store_true", help="tell the model each task's instruction")
    parser.add_argument("--context-window", type=int, help="timesteps that the model looks back at most")
    parser.add_argument(
        "--remembered",
        type=float,
        default=0.5,
        help="share of a full window that the model remembers; 0: it forgets all",
    )
    parser.add_argument("--max-episode-steps", type=int, help="truncate episodes after so many timesteps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write evaluation.json; default: a local model's folder")
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)

    tasks = select_tasks(args.tasks)
    if args.model:
        model = AutoModel.from_pretrained(args.model, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(args.model)
        options = (args.deterministic, args.context_window, args.prompt, args.remembered)
        policies = [AgentPolicy(model, processor, *options)] * len(tasks)
    else:
        policies = [load_expert(task, None if args.policy == "expert" else "random") for task in tasks]

    scores = []
    for task, policy in zip(tasks, policies, strict=True):
        torch.manual_seed(args.seed)  # of sampled actions
        scores.append(
            evaluate(
                policy,
                task,
                episodes=args.episodes,
                num_envs=args.num_envs,
                seed=args.seed,
                max_episode_steps=args.max_episode_steps,
            )
        )
    table = format_table(score_rows(scores))
    print(table)

    command = "python " + shlex.join(sys.argv)
    local_model = Path(args.model) if args.model and Path(args.model).is_dir() else None
    output = args.output or local_model
    if output:
        output.mkdir(parents=True, exist_ok=True)
        write_scores(scores, output / "evaluation.json", policy=args.model or args.policy, command=command)
        print(f"written: {output / 'evaluation.json'}")
    if local_model:
        card = write_model_card(
            local_model,
            parameters=model.num_parameters(),
            tasks=[task.name for task in tasks],
            table=table,
            seed=args.seed,
            deterministic=args.deterministic,
            command=command,
            replay=(local_model / "replay.mp4").exists(),
        )
        print(f"written: {card}")


if __name__ == "__main__":
    main()
