"""The pictures of a data set's card: how good its episodes are, and what its environments look like."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from PIL import Image, ImageOps

from .envs import make_env
from .scores import expert_yardstick
from .shards import find_shards, whole_file
from .tasks import TaskSpec

ASSETS = "assets"
FRAME_SIZE = 160  # pixels, of one frame
FRAMES = 6  # of a domain
FRAME_TIMESTEP = 20


def draw_returns(path: Path, manifests: dict[str, dict[str, Any]]) -> Path | None:
    """A line for each task: its mean score between the published random one, 0, and the published expert's, 1.

    Returns:
        The path; None if no task has such scores, or matplotlib is not installed.
    """
    scores: dict[str, list[float]] = {}
    for name, manifest in manifests.items():
        if "episodes" in manifest:
            yardstick = expert_yardstick(name)
            if yardstick is not None:
                mean = np.mean([record["score"] for record in manifest["episodes"]])
                scores.setdefault(manifest["task"]["domain"], []).append(float(yardstick.normalized(mean)))
    if not scores or not importlib.util.find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.5 * len(scores)), layout="constrained")
    axes = figure.add_subplot()
    for row, normalized in enumerate(scores.values()):
        axes.plot(np.clip(normalized, -0.5, 2.5), [row] * len(normalized), "|", markersize=14)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlim(-0.6, 2.6)
    for score in (0, 1):
        axes.axvline(score, color="gray", linewidth=0.5)
    axes.set_xlabel("mean score of each task; 0: random, 1: the published expert")
    with whole_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return path


def draw_frames(folder: Path, manifests: dict[str, dict[str, Any]]) -> None:
    """For each domain a strip of frames of some of its tasks, where they can be rendered here."""
    domains: dict[str, list[TaskSpec]] = {}
    for manifest in manifests.values():
        task = TaskSpec.from_description(manifest["task"])
        if task.domain != "text":
            domains.setdefault(task.domain, []).append(task)
    for domain, tasks in domains.items():
        chosen = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, FRAMES).astype(int))]
        frames = [frame for frame in (_frame(folder / task.name, task) for task in chosen) if frame is not None]
        if frames:
            _write_strip(folder / ASSETS / f"{domain}.png", frames)


def _frame(folder: Path, task: TaskSpec) -> Image.Image | None:
    """What the task's first episode looks like after a few timesteps; None where it cannot be rendered."""
    shard, footer = next(iter(find_shards(folder).items()))
    [column] = next(pyarrow.parquet.ParquetFile(shard).iter_batches(1, columns=[task.action_column])).columns
    actions = column[0].values.to_pylist()
    try:
        with make_env(task, render_mode="rgb_array") as env:
            env.reset(seed=footer["episodes"][0]["seed"])
            for action in actions[: min(FRAME_TIMESTEP, len(actions) // 2)]:
                env.step(np.float32(action) if isinstance(action, list) else action)
            return Image.fromarray(np.asarray(env.render(), np.uint8))
    except Exception:  # MuJoCo, its OpenGL backends and gymnasium raise errors of many kinds
        return None


def _write_strip(path: Path, frames: list[Image.Image]) -> None:
    strip = Image.new("RGB", (FRAME_SIZE * len(frames), FRAME_SIZE))
    for number, frame in enumerate(frames):
        strip.paste(ImageOps.fit(frame, (FRAME_SIZE, FRAME_SIZE)), (number * FRAME_SIZE, 0))
    with whole_file(path) as stream:
        strip.save(stream, "PNG")
