"""Time building data sets beside the bare loop of environment and expert, and reading them beside training.

    python examples/benchmark_data.py            # ten minutes on 2 cores
    python examples/benchmark_data.py reading

Building: the bare loop only steps the environment and asks the expert, on the same starts, in one process; it records
nothing. A build's rate is that of its later episodes: a build of few episodes is subtracted from one of many, so that
the start of processes (shown besides) does not count. Efficiency is the rate over the bare loop's, times the workers.

Reading: rows of `load_dataset` become windows, and windows batches, on one core; beside it, how fast a model of 6.3
million parameters trains on such batches, on all cores.

Times are medians of alternating runs after a warm-up. Close other programs: their noise is in every figure.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import load_dataset
from train import Collator, has_fast_bf16

from dataset_builder import get_task, load_expert, make_env
from dataset_builder.builder import build
from dataset_builder.executors import keep_freed_memory
from dataset_builder.mixing import FixedWeights, TaskBatches, Windows
from dataset_builder.rollout import episode_seed
from modeling_jat import JatConfig, JatModelForCausalLM
from processing_jat import JatProcessor

# Task: episodes of the smaller build, and of the larger one.
BUILDS = {
    "metaworld-reach": (20, 120),
    "metaworld-assembly": (20, 120),
    "babyai-go-to": (20, 420),
    "babyai-go-to-red-ball-no-dists": (20, 2020),
    "mujoco-hopper": (20, 120),
}
# Tasks whose data are read, and how they are built.
READ = {
    "metaworld-reach": {"episodes": 40},
    "mujoco-hopper": {"episodes": 20},
    "babyai-go-to": {"episodes": 400},
    "atari-pong": {"episodes": 4, "expert": "random"},
}
RUNS = 3


def bare_loop(task: str, episodes: int) -> float:
    """Seconds for so many episodes, the later ones of a build."""
    spec = get_task(task)
    env, policy = make_env(spec), load_expert(spec)
    few = BUILDS[task][0]
    begun = time.perf_counter()
    for index in range(few, few + episodes):
        seed = episode_seed(task, index, 0)
        observation, _ = env.reset(seed=seed)
        policy.reset(env, seed)
        over, reward = False, None
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation, reward))
            over = terminated or truncated
    return time.perf_counter() - begun


def time_build(task: str, episodes: int, num_workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        build(task, folder, episodes=episodes, num_workers=num_workers, progress=False)
        return time.perf_counter() - begun


def benchmark_building() -> None:
    print(f"{'task':34}{'bare loop':>14}{'1 worker':>12}{'2 workers':>12}{'start, 2 workers':>18}")
    for task, (few, many) in BUILDS.items():
        episodes = many - few
        bare_loop(task, 5)
        times: dict[str | int, list[float]] = {"bare": [], 1: [], 2: [], "start": []}
        for _ in range(RUNS):
            times["bare"].append(bare_loop(task, episodes))
            for workers in (1, 2):
                short, long = (time_build(task, count, workers) for count in (few, many))
                times[workers].append(long - short)
                if workers == 2:
                    times["start"].append(short)
        medians = {key: statistics.median(values) for key, values in times.items()}
        efficiency = {workers: medians["bare"] / medians[workers] / workers for workers in (1, 2)}
        print(
            f"{task:34}{episodes / medians['bare']:10.1f} ep/s{efficiency[1]:12.2f}{efficiency[2]:12.2f}"
            f"{medians['start']:16.1f} s",
            flush=True,
        )
    print("1 worker, 2 workers: efficiency")


def read(windows: Windows, collator: Collator, batches: int, run: int) -> tuple[float, list[dict[str, Any]]]:
    """Timesteps per second of making batches, and the batches."""
    rule = FixedWeights.published(windows.tasks)
    sampler = TaskBatches(rule, batch_size=16, seed=run, num_batches=batches, shapes=windows.shapes)
    begun = time.perf_counter()
    made = [collator([windows[key] for key in keys]) for keys in sampler]
    seconds = time.perf_counter() - begun
    return sum(int(batch["attention_mask"].sum()) for batch in made) / seconds, made


def train(
    model: JatModelForCausalLM, optimizer: torch.optim.Optimizer, batches: list[dict[str, torch.Tensor]]
) -> float:
    """Timesteps per second of training on them."""
    begun = time.perf_counter()
    for batch in batches:
        inputs = {name: values for name, values in batch.items() if isinstance(values, torch.Tensor)}
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(int(batch["attention_mask"].sum()) for batch in batches) / (time.perf_counter() - begun)


def benchmark_reading() -> None:
    keep_freed_memory()
    cores = torch.get_num_threads()
    processor = JatProcessor.from_texts([get_task(task).instruction for task in READ], 512, rescale_observations=False)
    end = processor.tokenizer.eos_token_id
    tokens = {"vocab_size": 512, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = JatConfig(hidden_size=256, num_layers=8, num_heads=8, max_position_embeddings=512, **tokens)
    model = JatModelForCausalLM(config)
    trunk = sum(parameter.numel() for parameter in model.transformer.h.parameters())
    print(f"a model of {model.num_parameters():,} parameters, {trunk:,} of them in the trunk, on {cores} cores")
    print(f"{'task':34}{'reading':>22}{'training':>22}{'ratio':>8}")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        for task, options in READ.items():
            build(task, folder, progress=False, **options)
            dataset = load_dataset(folder, task, split="train", cache_dir=cache)
            windows, rates = Windows({task: dataset}), []
            for run in range(RUNS + 1):
                torch.set_num_threads(1)
                reading, batches = read(windows, Collator(processor), 40, run)
                torch.set_num_threads(cores)
                rates.append((reading, train(model, optimizer, batches[:6])))
            reading, training = (statistics.median(column) for column in zip(*rates[1:], strict=True))
            ratio = reading / training
            print(f"{task:34}{reading:10,.0f} timesteps/s{training:10,.0f} timesteps/s{ratio:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["building", "reading"], help="default: both")
    what = parser.parse_args().what
    if what in (None, "reading"):
        benchmark_reading()
    if what in (None, "building"):
        benchmark_building()


if __name__ == "__main__":
    main()
