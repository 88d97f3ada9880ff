"""Time building data sets beside the bare loop of environment and expert, and reading them into batches.

    python examples/benchmark_data.py            # ten minutes on 2 cores
    python examples/benchmark_data.py reading

Building: the bare loop only steps the environment and asks the expert, on the same starts, in one process; it records
nothing. A build's rate is that of its later episodes: a build of few episodes is subtracted from one of many, so that
the start of processes (shown besides) does not count. Efficiency is the rate over the bare loop's, times the workers.

Reading: rows of `load_dataset` become windows, and windows batches of the processor, on one core.

Times are medians of alternating runs after a warm-up. Close other programs: their noise is in every figure.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import load_dataset

from dataset_builder import get_task, load_expert, make_env
from dataset_builder.builder import build
from dataset_builder.mixing import TaskBatches, Windows
from dataset_builder.rollout import episode_seed
from processing_jat import JatProcessor

# Task: episodes of the smaller build, and of the larger one.
BUILDS = {
    "metaworld-reach": (20, 120),
    "metaworld-assembly": (20, 120),
    "babyai-go-to": (20, 420),
    "babyai-go-to-red-ball-no-dists": (20, 2020),
    "mujoco-hopper": (20, 120),
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


def benchmark_reading() -> None:
    torch.set_num_threads(1)
    processor = JatProcessor.from_texts(["reach the goal"], 257)
    task = "metaworld-reach"
    with tempfile.TemporaryDirectory() as folder:
        build(task, folder, episodes=100, progress=False)
        dataset = load_dataset(folder, task, split="train", cache_dir=str(Path(folder) / "cache"))
        windows = Windows({task: dataset})
        rates = []
        for run in range(RUNS + 1):
            timesteps, begun = 0, time.perf_counter()
            for keys in TaskBatches(windows, batch_size=16, seed=run, num_batches=100):
                rows = [windows[key] for key in keys]
                columns = [{column: row[column] for column in get_task(task).columns} for row in rows]
                batch = processor.pad(columns)
                timesteps += int(batch["attention_mask"].sum())
            rates.append(timesteps / (time.perf_counter() - begun))
        print(f"reading {task}: {statistics.median(rates[1:]):,.0f} timesteps/s from rows to batches, one core")


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
