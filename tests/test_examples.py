"""The scripts of examples/ and the README's snippet, on a small agent trained here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import TASKS, wait_until
from hub import running_hub
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor

from dataset_builder.cards import write_model_card
from dataset_builder.report import read_evaluation, task_figures

ROOT = Path(__file__).parent.parent
SIZES = ["--hidden-size", "64", "--num-layers", "2", "--num-heads", "2", "--window", "16", "--image-window", "2"]
TRAINING = [*SIZES, "--batch-size", "2", "--save-every", "6"]


def run(*arguments, cwd=ROOT):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def train_command(data_folder):
    return [ROOT / "examples/train.py", "--data", data_folder, *TRAINING, "--steps", "12", "--output"]


@pytest.fixture(scope="module")
def model_folder(train_command, tmp_path_factory):
    """A JAT trained for a few steps on a task of each domain, where the README expects it."""
    folder = tmp_path_factory.mktemp("examples") / "demo" / "jat"
    run(*train_command, folder)
    return folder


def test_training_leaves_a_model_with_its_processor_and_code(model_folder):
    names = {path.name for path in model_folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert {"configuration_jat.py", "modeling_jat.py", "processing_jat.py"} <= names


def test_evaluate(model_folder):
    output = run(
        "examples/evaluate.py", "--model", model_folder, "--tasks", *TASKS[1:3], "--episodes", "3", "--num-envs", "2"
    )
    assert "| task " in output
    assert "babyai-go-to-red-ball-no-dists" in output
    record = json.loads((model_folder / "evaluation.json").read_text())
    assert [len(task["episodes"]) for task in record["tasks"]] == [3, 3]


def test_an_evaluation_goes_on(model_folder, tmp_path):
    """Killed, with more episodes, with more processes: what is finished is kept, and nothing else changes."""
    task = "mujoco-reacher"
    command = [sys.executable, "examples/evaluate.py", "--model", str(model_folder), "--num-envs", "4", "--tasks", task]
    log = tmp_path / "killed" / "evaluation.jsonl"
    process = subprocess.Popen(
        [*command, "--episodes", "400", "--output", str(log.parent)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 10, process)
    process.kill()
    process.wait()
    kept = log.read_text().splitlines()[:10]
    output = ["--output", str(log.parent), "--num-workers", "2"]
    result = subprocess.run(
        [*command, "--episodes", "24", *output], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(re.findall(r"/(\d+)", result.stderr)[-1]) < 24
    assert log.read_text().splitlines()[:10] == kept
    run(*command[1:], "--episodes", "24", "--output", tmp_path / "undisturbed")

    def returns(folder):
        [record] = json.loads((folder / "evaluation.json").read_text())["tasks"]
        return [(episode["seed"], episode["total_reward"]) for episode in record["episodes"]]

    np.testing.assert_allclose(returns(tmp_path / "killed"), returns(tmp_path / "undisturbed"), rtol=1e-5)


def test_half_precision_plays_its_own_episodes(model_folder, tmp_path):
    """Close to those of float32, which the folder holds already, but other ones."""
    command = ["examples/evaluate.py", "--model", model_folder, "--tasks", "mujoco-reacher", "--episodes", "2"]
    run(*command, "--output", tmp_path)
    run(*command, "--output", tmp_path, "--dtype", "bfloat16")
    log = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    returns = {
        dtype: [line["total_reward"] for line in log if line["dtype"] == dtype] for dtype in ("float32", "bfloat16")
    }
    assert returns["float32"] != returns["bfloat16"]
    np.testing.assert_allclose(*returns.values(), rtol=0.1)


def test_the_evaluation_of_another_model_is_not_mixed_with(model_folder, tmp_path):
    command = [sys.executable, "examples/evaluate.py", "--tasks", "mujoco-pendulum", "--episodes", "1"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    first = subprocess.run([*command, "--policy", "random", "--output", str(tmp_path)], **options)
    assert first.returncode == 0, first.stderr
    other = subprocess.run([*command, "--model", str(model_folder), "--output", str(tmp_path)], **options)
    assert other.returncode == 2
    assert "evaluation.jsonl holds episodes of experts, this is weights" in other.stderr
    assert "choose another --output" in other.stderr


@pytest.fixture(scope="module")
def prompted_model(train_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompted") / "jat"
    run(*train_command, folder, "--prompt-fraction", "0.5", "--tasks", "mujoco-pendulum", TASKS[1])
    return folder


def test_prompts_in_training_and_in_acting(prompted_model, data_folder, tmp_path):
    command = ["examples/evaluate.py", "--model", prompted_model, "--tasks", "mujoco-pendulum", "--episodes", "2"]

    def returns(*options):
        folder = tmp_path / f"scores-{len(options)}"
        run(*command, "--output", folder, *options)
        [record] = json.loads((folder / "evaluation.json").read_text())["tasks"]
        return [episode["total_reward"] for episode in record["episodes"]]

    shown = ["--demonstrations", str(data_folder), "--demonstration-steps", "5"]
    played = [returns(), returns("--prompt"), returns(*shown), returns("--prompt", *shown)]
    assert len(set(map(tuple, played))) > 1


def test_the_film_shows_the_agent_as_it_was_evaluated(prompted_model, tmp_path):
    """The same episode: its actions are drawn from the same seed, with the same prompt."""
    model, task = prompted_model, "babyai-go-to-red-ball-no-dists"
    run("examples/evaluate.py", "--model", model, "--tasks", task, "--episodes", "1", "--prompt", "--deterministic")
    [[episode]] = [score.episodes for score in read_evaluation(model / "evaluation.json").scores]
    filmed = f"Episode({task}, seed={episode.seed}, {episode.timesteps} timesteps"
    assert filmed in run("examples/report.py", model)
    assert "prompt=prompt" in (model / "README.md").read_text()
    options = ["--prompt", "--deterministic", "--output", tmp_path / "replay.mp4"]
    assert filmed in run("examples/play.py", "--model", model, "--tasks", task, *options)


def test_an_agent_learns_from_where_it_gets_itself(data_folder, model_folder, tmp_path):
    lessons, model = tmp_path / "lessons", tmp_path / "jat"
    tasks = TASKS[1:3]
    student = ["--model", model_folder, "--dtype", "float16"]
    run("examples/dagger.py", *student, "--tasks", *tasks, "--episodes", "3", "--output", lessons)
    recipe = json.loads((lessons / tasks[0] / "manifest.json").read_text())["recipe"]
    assert (recipe["student"]["policy"], recipe["student"]["dtype"]) == ("jat", "float16")
    options = ["--init-from", model_folder, "--tasks", *tasks, "--batch-size", "2", "--steps", "2", "--output", model]
    positions = AutoConfig.from_pretrained(model_folder).max_position_embeddings
    window = positions + 8  # longer than the model has seen
    output = run("examples/train.py", "--data", data_folder, lessons, "--window", window, *options)
    episodes = re.search(rf"{tasks[0]}: (\d+) episodes", output)
    assert int(episodes[1]) == 14
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (model_folder, model))
    assert (before["before"], after["before"]) == (None, before)
    config = AutoConfig.from_pretrained(model)
    assert config.context_window == window
    assert config.max_position_embeddings >= window * config.tokens_per_timestep
    assert AutoProcessor.from_pretrained(model).tokenizer.model_max_length == config.max_position_embeddings


def test_captions_are_learnt_and_evaluated(tmp_path):
    own, data, model = ["--register", "examples/captions.py"], tmp_path / "data", tmp_path / "jat"
    subsets = ["--tasks", "view-captions", "missions"]
    run("-m", "dataset_builder", "build", *own, *subsets, "--episodes", "40", "--output", data)
    sizes = [*SIZES[:6], "--window", "64", "--config", "image_size=112", "--batch-size", "4"]
    run(ROOT / "examples/train.py", *own, "--data", data, *sizes, "--steps", "120", "--output", model)
    output = run(ROOT / "examples/evaluate_text.py", *own, "--model", model, "--data", data, *subsets)
    found = json.loads((model / "text_evaluation.json").read_text())
    for name in subsets[1:]:
        assert f"{name}: rows 4, perplexity" in output
        assert found[name]["next_token_accuracy"] > 0.2
        assert found[name]["perplexity"] < 100
        assert all(len(sample["written"]) < 200 for sample in found[name]["samples"])
    assert "written_exactly" in found["view-captions"]
    assert found["missions"]["samples"][0]["given"]
    card = write_model_card(model).read_text()
    assert f"| view-captions |    4 | {found['view-captions']['perplexity']:>10.2f} |" in card
    assert found["missions"]["samples"][0]["expected"] in card


def test_evaluate_an_expert(tmp_path):
    output = run(
        "examples/evaluate.py",
        "--policy",
        "expert",
        "--tasks",
        "mujoco-reacher",
        "--episodes",
        "3",
        "--output",
        tmp_path,
    )
    assert float(re.search(r"\| mujoco-reacher +\| +3 \| +(-\d+\.\d+)", output)[1]) > -10
    assert (tmp_path / "evaluation.json").exists()


def test_play(model_folder, tmp_path):
    """What cannot be rendered on a machine is said and left out; BabyAI and Atari always can be."""
    output = run(
        "examples/play.py", "--model", model_folder, "--tasks", *TASKS, "--max-episode-steps", "8",
        "--output", tmp_path / "replay.mp4",
    )  # fmt: skip
    assert "Episode(babyai-go-to-red-ball-no-dists" in output
    for task in TASKS:
        assert f"Episode({task}" in output or f"{task} is left out" in output
    with av.open(str(tmp_path / "replay.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec.name == "h264"
        assert sum(1 for _ in container.decode(stream)) == 8


def test_quickstart(model_folder):
    output = run("examples/quickstart.py", "--model", model_folder, "--task", "mujoco-pendulum")
    assert re.match(r"mujoco-pendulum: return \d+\.\d+ over \d+ timesteps", output)


def test_quickstart_with_the_agent_of_the_package():
    output = run("examples/quickstart.py", "--task", "metaworld-door-open", "--prompt")
    assert re.match(r"metaworld-door-open: return \d+\.\d+ over 500 timesteps, success", output)


def test_the_readmes_snippet(tmp_path):
    """Runs as it stands, without a network and in any folder, to the end of an episode."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert 'pretrained("jat-mini")' in snippet
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"{snippet}\nprint(truncated)"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"


@pytest.mark.slow
def test_the_demo(tmp_path):
    """The agent of `make demo` is plainly better than random where it can learn; run again, the demo keeps its work."""
    output = run("examples/demo.py", "--output", tmp_path / "demo")
    assert "Where to look" in output
    folder = tmp_path / "demo" / "jat"
    assert (folder / "replay.mp4").stat().st_size > 10_000
    tasks = {task["task"]: task for task in json.loads((folder / "evaluation.json").read_text())["tasks"]}
    assert set(tasks) == {"babyai-go-to-red-ball-no-dists", "metaworld-reach", "mujoco-reacher", "atari-pong"}
    assert all(task["figures"]["normalized"] > 0.5 for name, task in tasks.items() if name != "atari-pong")
    assert (folder / "report/index.html").exists()
    weights = (folder / "model.safetensors").read_bytes()
    run("examples/demo.py", "--output", tmp_path / "demo")
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_twelve_tasks(tmp_path):
    """Half an hour of training on 2 cores: all above random, half of them at half of the expert's score at least."""
    with running_hub(lfs=(".safetensors", ".mp4")) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        command = ["examples/demo.py", "--recipe", "twelve", "--output", str(tmp_path), "--repo-id", "jat/twelve"]
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
        load = (
            "import modeling_jat; from transformers import AutoModel;"
            f"AutoModel.from_pretrained('jat/twelve').save_pretrained({str(tmp_path / 'loaded')!r})"
        )
        subprocess.run([sys.executable, "-c", load], env=environment, check=True)
    sent, loaded = (load_file(tmp_path / name / "model.safetensors") for name in ("jat", "loaded"))
    assert all((sent[name] == loaded[name]).all() for name in sent)
    figures = [task_figures(score) for score in read_evaluation(tmp_path / "jat/evaluation.json").scores]
    assert len(figures) == 12
    for task in figures:
        assert task["return"] - 3 * task["standard_error"] > task["random"], task
    assert sum(task["normalized"] >= 0.5 for task in figures) >= 6


def test_the_table_of_sizes_is_the_benchmarks():
    table = [line for line in run(ROOT / "examples/benchmark.py", "sizes").splitlines() if line.startswith("|")]
    assert len(table) == 6
    assert "\n".join(table) in (ROOT / "modeling_jat/README.md").read_text()
