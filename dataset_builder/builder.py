"""Builds data sets: episodes of experts become Parquet shards that `datasets.load_dataset` reads.

    DIR/README.md                                  the card, with the configurations and their features
    DIR/metaworld-reach/train-00000-of-00004.parquet
    DIR/metaworld-reach/manifest.json              how the task was built, and every episode's return

A shard is the unit of work: it holds fixed episodes, is written under a temporary name and renamed when it is whole,
and describes itself in its footer. So a build can be interrupted at any moment and goes on with the finished shards
kept, by any number of workers, and the result is the same, byte for byte.
"""

import importlib.metadata
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.arrow_writer import ParquetWriter
from tqdm import tqdm

from .cards import write_dataset_card
from .envs import make_env
from .episodes import Episode, task_features
from .experts import load_expert
from .rollout import ExpertGaveUp, episode_seed, rollout
from .tasks import TaskSpec, get_task, select_tasks

MANIFEST = "manifest.json"
SPLITS = ("train", "test")
# Every tenth episode is a test episode, whatever else is built.
TEST_EVERY = 10
# A long Atari episode takes 100 MB.
EPISODES_PER_SHARD = {"atari": 1}
DEFAULT_EPISODES_PER_SHARD = 25
# An expert that gives up so many starts in a row of one episode is broken, not unlucky.
MAX_DROPPED_STARTS = 100

_FOOTER_KEY = b"jat"
_VERSIONED_PACKAGES = ("ale-py", "datasets", "gymnasium", "metaworld", "minigrid", "mujoco", "numpy")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the episodes of a task are a function of, beside their index.

    Args:
        task: name of the task.
        expert: kind of expert, see `dataset_builder.experts.EXPERTS`.
        seed: base seed.
        max_episode_steps: truncate episodes after so many timesteps; None for the task's own horizon.
    """

    task: str
    expert: str
    seed: int = 0
    max_episode_steps: int | None = None


@dataclass(frozen=True)
class Shard:
    """A file to be written: some episodes of one split of a task."""

    recipe: Recipe
    split: str
    number: int
    indices: tuple[int, ...]

    def path(self, directory: Path, of: int) -> Path:
        return directory / self.recipe.task / f"{self.split}-{self.number:05d}-of-{of:05d}.parquet"


def split_of(index: int) -> str:
    """The split of an episode, decided by its index alone."""
    return "test" if index % TEST_EVERY == TEST_EVERY - 1 else "train"


def plan_shards(recipe: Recipe, episodes: int) -> list[Shard]:
    """The shards of a task, in order; more episodes change at most the last shard of each split."""
    size = EPISODES_PER_SHARD.get(get_task(recipe.task).domain, DEFAULT_EPISODES_PER_SHARD)
    shards = []
    for split in SPLITS:
        indices = [index for index in range(episodes) if split_of(index) == split]
        shards += [
            Shard(recipe, split, number, tuple(indices[start : start + size]))
            for number, start in enumerate(range(0, len(indices), size))
        ]
    return shards


def generate_episodes(recipe: Recipe, indices: tuple[int, ...]) -> Iterator[tuple[Episode, int]]:
    """Play the episodes with these indices; yields each with the number of starts that the expert gave up.

    Raises:
        RuntimeError: if the expert gives up too many starts in a row.
    """
    task = get_task(recipe.task)
    policy = load_expert(task, recipe.expert)
    with make_env(task, max_episode_steps=recipe.max_episode_steps) as env:
        for index in indices:
            for attempt in count():
                seed = episode_seed(task.name, index, recipe.seed, attempt=attempt)
                try:
                    episode = rollout(env, policy, seed)
                except ExpertGaveUp as error:
                    if attempt == MAX_DROPPED_STARTS:
                        raise RuntimeError(
                            f"{task.name}, episode {index}: the expert {recipe.expert} gave up {attempt + 1} starts"
                        ) from error
                else:
                    yield episode, attempt
                    break


def write_shard(shard: Shard, path: Path) -> dict[str, Any]:
    """Play a shard's episodes and write them; the file appears whole or not at all.

    Returns:
        The shard's footer, see `read_footer`.
    """
    task = get_task(shard.recipe.task)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    rows_per_write = 1 if "image_observations" in task.columns else 100
    records = []
    with (
        unfinished.open("wb") as stream,
        ParquetWriter(features=task_features(task), stream=stream, writer_batch_size=rows_per_write) as writer,
    ):
        for index, (episode, dropped) in zip(
            shard.indices, generate_episodes(shard.recipe, shard.indices), strict=True
        ):
            writer.write(episode.encoded_row)
            records.append(
                {
                    "index": index,
                    "seed": episode.seed,
                    "timesteps": len(episode),
                    "return": episode.total_reward,
                    "score": episode.score,
                    "success": episode.success,
                    "dropped_starts": dropped,
                }
            )
        writer.write_examples_on_file()
        footer = {
            "recipe": asdict(shard.recipe),
            "split": shard.split,
            "episodes": records,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONED_PACKAGES},
        }
        writer.pa_writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer)})
        writer.finalize(close_stream=False)
    unfinished.replace(path)
    return footer


def read_footer(path: Path) -> dict[str, Any]:
    """How a shard was made: its recipe, its split, and a record of every episode.

    Raises:
        ValueError: if the file is damaged, or was not written by this builder.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{path} is not a Parquet file, or a damaged one ({error}): delete it and build again"
        ) from error
    if _FOOTER_KEY not in metadata:
        raise ValueError(f"{path} was not written by this builder: choose another folder")
    return json.loads(metadata[_FOOTER_KEY])


def build(
    tasks: str | list[str],
    output: str | Path,
    *,
    episodes: int,
    expert: str | None = None,
    seed: int = 0,
    num_workers: int = 1,
    max_episode_steps: int | None = None,
    progress: bool = True,
) -> Path:
    """Build the data sets of some tasks, or go on with a build that was interrupted.

    Args:
        tasks: patterns, as in `select_tasks`.
        output: the folder. What it holds of the same build is kept.
        episodes: how many episodes of each task, test episodes included.
        expert: kind of expert; each task's own by default.
        seed: base seed of all episodes.
        num_workers: processes.
        max_episode_steps: truncate episodes after so many timesteps.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        ValueError: if a task is unknown or has no environment, a number is out of range, or the folder holds
            something else.
        MissingExpertError: if a task has no expert.
    """
    output = Path(output)
    selected = select_tasks(tasks)
    for name, value in (("episodes", episodes), ("num_workers", num_workers), ("max_episode_steps", max_episode_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    recipes = []
    for task in selected:
        if task.domain == "text":
            raise ValueError(f"{task.name} is a text subset: it has no episodes to build")
        load_expert(task, expert)  # fails here, before any work, if there is none
        recipes.append(
            Recipe(task=task.name, expert=expert or task.expert, seed=seed, max_episode_steps=max_episode_steps)
        )
    _refuse_foreign(output, recipes, episodes)

    paths, open_shards = {}, {}
    for recipe in recipes:
        placed, finished = _place_shards(plan_shards(recipe, episodes), output)
        paths |= placed
        open_shards |= {shard: path for shard, path in placed.items() if shard not in finished}
    total = episodes * len(recipes)
    done = total - sum(len(shard.indices) for shard in open_shards)
    with tqdm(total=total, initial=done, unit="episode", disable=not progress) as bar:
        for footer in _write_shards(open_shards, num_workers):
            bar.set_description(footer["recipe"]["task"], refresh=False)
            bar.update(len(footer["episodes"]))
    planned = set(paths.values())
    for recipe in recipes:
        folder = output / recipe.task
        for path in folder.iterdir():
            if path not in planned:  # a last shard that has more episodes now, or one that was never finished
                path.unlink()
        write_manifest(folder)
    write_dataset_card(output)
    return output


def _write_shards(shards: dict[Shard, Path], num_workers: int) -> Iterator[dict[str, Any]]:
    """Write shards in this process or in several; yields footers as they are finished."""
    if num_workers == 1:
        for shard, path in shards.items():
            yield write_shard(shard, path)
        return
    # A fresh interpreter for each worker: MuJoCo's and the emulator's state must not be forked.
    executor: Executor = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    with executor:
        futures: list[Future] = [executor.submit(write_shard, shard, path) for shard, path in shards.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            executor.shutdown(cancel_futures=True)


def _place_shards(shards: list[Shard], output: Path) -> tuple[dict[Shard, Path], set[Shard]]:
    """The path of every shard of a task, and which shards are finished.

    Finished ones of a build of fewer episodes bear the same number but another total: they are renamed.
    """
    found = {}
    for path in (output / shards[0].recipe.task).glob("*.parquet"):
        footer = read_footer(path)
        found[footer["split"], tuple(record["index"] for record in footer["episodes"])] = path
    paths, finished = {}, set()
    for shard in shards:
        paths[shard] = path = shard.path(output, of=sum(other.split == shard.split for other in shards))
        if (shard.split, shard.indices) in found:
            found[shard.split, shard.indices].replace(path)
            finished.add(shard)
    return paths, finished


def _refuse_foreign(output: Path, recipes: list[Recipe], episodes: int) -> None:
    """Refuse a folder that holds anything but data sets of the same recipes, before anything is written."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"{output} is a file: expected a folder, or a path where one can be made")
    recipes_by_task = {recipe.task: recipe for recipe in recipes}
    known_tasks = {task.name for task in select_tasks(["all", "text"])} | set(recipes_by_task)
    for entry in sorted(output.iterdir()):
        if entry.name == "README.md" and entry.is_file():
            continue
        if entry.name not in known_tasks or not entry.is_dir():
            raise ValueError(
                f"{output} holds something else ({entry.name}): choose an empty folder or one of an earlier build"
            )
        for path in sorted(entry.iterdir()):
            if path.suffix == ".unfinished" or path.name == MANIFEST:
                continue
            footer = read_footer(path)
            recipe = recipes_by_task.get(entry.name)
            if recipe is not None and footer["recipe"] != asdict(recipe):
                raise ValueError(
                    f"{path} was built by another recipe: it has {footer['recipe']}, this build asks for "
                    f"{asdict(recipe)}: choose another folder, or build with the same options"
                )
            last = max(record["index"] for record in footer["episodes"])
            if recipe is not None and last >= episodes:
                raise ValueError(
                    f"{path} holds episode {last}, this build asks for {episodes} episodes only: choose another "
                    "folder, or ask for more"
                )


def write_manifest(folder: Path) -> None:
    """Sum up a task's shards in `manifest.json`."""
    footers = {path.name: read_footer(path) for path in sorted(folder.glob("*.parquet"))}
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for footer in footers.values():
        splits[footer["split"]] += footer["episodes"]
    manifest = {
        "recipe": next(iter(footers.values()))["recipe"],
        "versions": next(iter(footers.values()))["versions"],
        "splits": {
            split: {"episodes": len(records), "timesteps": sum(record["timesteps"] for record in records)}
            for split, records in splits.items()
            if records
        },
        "episodes": sorted((record for records in splits.values() for record in records), key=lambda r: r["index"]),
        "shards": list(footers),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class JatDataset(datasets.GeneratorBasedBuilder):
    """The same data sets through `datasets`' own builder interface, one configuration for each task.

    JatDataset(config_name="metaworld-reach", episodes=10).download_and_prepare("DIR", file_format="parquet")
    """

    BUILDER_CONFIGS = [datasets.BuilderConfig(name=task.name, description=task.instruction) for task in select_tasks()]

    def __init__(
        self, *args: Any, episodes: int = 100, seed: int = 0, expert: str | None = None, **kwargs: Any
    ) -> None:
        self.episodes, self.seed, self.expert = episodes, seed, expert
        super().__init__(*args, **kwargs)
        self.task: TaskSpec = get_task(self.config.name)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=task_features(get_task(self.config.name)))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        recipe = Recipe(task=self.task.name, expert=self.expert or self.task.expert, seed=self.seed)
        indices = {split: [i for i in range(self.episodes) if split_of(i) == split] for split in SPLITS}
        return [
            datasets.SplitGenerator(split, gen_kwargs={"recipe": recipe, "indices": indices[split]})
            for split in SPLITS
            if indices[split]
        ]

    def _generate_examples(self, recipe: Recipe, indices: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (episode, _) in zip(indices, generate_episodes(recipe, tuple(indices)), strict=True):
            yield index, episode.encoded_row
