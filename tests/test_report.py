"""What an evaluation shows, in a real browser too, and a model's page on the Hub."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from conftest import TASKS
from hub import running_hub
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_builder import TaskSpec, register_task, tasks
from dataset_builder.__main__ import main
from dataset_builder.cards import write_model_card
from dataset_builder.evaluation import PlayedEpisode, TaskScore
from dataset_builder.replay import MAX_BYTES, write_replay
from dataset_builder.report import (
    Evaluation,
    domain_figures,
    format_evaluation,
    format_table,
    read_evaluation,
    score_rows,
    task_figures,
    write_evaluation,
    write_report,
)
from dataset_builder.scores import performance_profile

ROOT = Path(__file__).parent.parent
HOPPER, REACH, PONG, BALL = "mujoco-hopper", "metaworld-reach", "atari-pong", "babyai-go-to-red-ball-no-dists"


def score(task, *scores, success=None, whole=None):
    episodes = [
        PlayedEpisode(
            index=index,
            seed=index,
            total_reward=whole or value,
            score=value,
            success=success,
            timesteps=100,
            seconds=1.0,
        )
        for index, value in enumerate(scores)
    ]
    return TaskScore(task=task, seed=0, episodes=tuple(episodes))


def make_evaluation(*scores, cut=None):
    versions = {"gymnasium": "1.4.0", "mujoco": "3.3.0"}
    return Evaluation(
        list(scores),
        {"policy": "jat", "command": "python examples/evaluate.py …", "max_episode_steps": cut, "versions": versions},
    )


@pytest.fixture
def evaluation():
    return make_evaluation(
        score(PONG, -21.0, -20.0),
        score(BALL, 0.93, 0.95, success=True),
        score(REACH, 681.37, success=True, whole=3000.0),
        score("metaworld-assembly", 300.0, 20.0, success=False),
        score(HOPPER, 1858.73, 1858.73),
    )


def test_figures_are_as_published(evaluation):
    hopper, reach, pong = (task_figures(evaluation.scores[index]) for index in (4, 2, 0))
    assert (hopper["return"], hopper["standard_error"], hopper["normalized"]) == (1858.73, 0.0, 1.0)
    assert hopper["published_jat"] == 1435.45
    assert hopper["published_jat_normalized"] == pytest.approx((1435.45 - 18.38) / (1858.73 - 18.38), abs=1e-3)
    assert (reach["return"], reach["whole_return"], reach["success"]) == (681.37, 3000.0, 1.0)
    assert pong["human_normalized"] == pytest.approx((-20.5 + 20.7) / (14.6 + 20.7), abs=1e-3)
    domains = {(figures.domain, figures.yardstick): figures for figures in domain_figures(evaluation)}
    assert set(domains) == {(domain, "expert") for domain in ("atari", "babyai", "metaworld", "mujoco")} | {
        ("atari", "human")
    }
    assert domains["metaworld", "expert"].tasks == 2
    mean = np.mean([task_figures(evaluation.scores[index])["normalized"] for index in (2, 3)])
    assert domains["metaworld", "expert"].statistics["mean"].value == pytest.approx(mean)


def test_the_printed_table(evaluation):
    lines = format_table(score_rows(evaluation.scores)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[6].split("|")[1:-1]] == [
        HOPPER, "2", "1858.73 ± 0.00", "-", "18.38", "1858.73", "1435.45", "1.00",
    ]  # fmt: skip
    assert "cut after" not in format_evaluation(evaluation)
    assert format_evaluation(make_evaluation(score(HOPPER, 1.0), cut=50)).endswith(
        "Episodes were cut after 50 timesteps: the returns are less than they would be."
    )


def test_an_evaluation_is_read_as_it_was_written(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path / "evaluation.json")
    assert read_evaluation(tmp_path / "evaluation.json") == evaluation
    with pytest.raises(ValueError, match="is not there: `python"):
        read_evaluation(tmp_path / "other.json")
    (tmp_path / "evaluation.json").write_text('{"tasks": [{"episodes": 3}]}')
    with pytest.raises(ValueError, match="is no evaluation, or one of another version"):
        read_evaluation(tmp_path / "evaluation.json")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-1, 2), min_size=1, max_size=5), min_size=1, max_size=4))
def test_performance_profiles_fall_from_all_to_none(scores):
    values, low, high = performance_profile(scores, np.linspace(-1.01, 2, 50), resamples=50)
    assert values[0] == 1
    assert values[-1] == 0
    assert (np.diff(values) <= 0).all()
    assert ((low <= high) & (low >= 0) & (high <= 1)).all()
    above_half = np.mean([np.mean(np.array(task) > 0.5) for task in scores])
    assert performance_profile(scores, np.array([0.5]), resamples=2)[0] == pytest.approx(above_half)


def make_video(path):
    frames = [np.full((320, 320, 3), 40 * t, np.uint8) for t in range(5)]
    path.parent.mkdir(exist_ok=True, parents=True)
    write_replay([frames], path)
    return path


HISTORY = [
    {"step": step, "loss": 1 / step, "loss/mujoco-hopper": 1 / step, "loss/atari-pong": 2 / step}
    for step in (1, 10, 20)
] + [{"step": 20, "eval_score": 0.4}]


@pytest.fixture
def report(evaluation, tmp_path):
    folder = tmp_path / "report"
    write_report(evaluation, folder, videos={"mujoco": make_video(tmp_path / "mujoco.mp4")}, history=HISTORY)
    return folder


def test_the_report(report, evaluation):
    rows = list(csv.DictReader((report / "scores.csv").open()))
    assert [row["task"] for row in rows] == [score.task for score in evaluation.scores]
    assert float(rows[4]["return"]) == 1858.73
    assert rows[0]["success"] == ""
    for name in ("tasks.png", "profiles.png", "learning.png"):
        assert min(Image.open(report / name).size) > 300
    page = (report / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # it needs nothing but itself
    assert page.count("data:image/png") == 3
    assert page.count("data:video/mp4") == 1


def test_text_of_others_does_not_become_code(tmp_path):
    evaluation = make_evaluation(score(HOPPER, 1.0))
    evaluation.about["policy"] = "<script>alert(1)</script>"
    assert "<script>alert" not in write_report(evaluation, tmp_path).read_text()


@pytest.fixture
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def test_the_page_in_a_browser(report, browser):
    """Sorted by a click, filtered by a word or a domain; the video plays, and a phone shows all of it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{report}/index.html")

    def column(number):
        return page.locator(f"#tasks tbody tr:visible td:nth-child({number})").all_inner_texts()

    written = [PONG, BALL, REACH, "metaworld-assembly", HOPPER]
    assert column(1) == written
    page.get_by_role("button", name="return").click()
    assert column(3) == ["1,859", "681.37", "160.00", "0.94", "-20.50"]
    page.get_by_role("button", name="return").click()
    assert column(3) == ["-20.50", "0.94", "160.00", "681.37", "1,859"]
    page.get_by_role("button", name="success").click()  # what has none stands last, whatever the order
    assert column(5) == ["1.00", "1.00", "0.00", "-", "-"]
    page.get_by_role("button", name="success").click()
    assert column(5) == ["0.00", "1.00", "1.00", "-", "-"]
    page.get_by_role("button", name="task").click()
    assert column(1) == sorted(written)
    page.get_by_label("Domain").select_option("metaworld")
    assert column(1) == ["metaworld-assembly", REACH]
    page.get_by_label("Domain").select_option("")
    page.get_by_label("Find a task").fill("hop")
    assert column(1) == [HOPPER]
    page.wait_for_function("document.querySelector('video').readyState >= 1")
    assert page.evaluate("document.querySelector('video').videoWidth") == 320
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    phone = browser.new_page(viewport={"width": 360, "height": 740}, is_mobile=True)
    phone.goto(f"file://{report}/index.html")
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert not faults


def test_a_replay_is_a_grid_below_the_limit(tmp_path):
    rng = np.random.default_rng(0)
    clips = [[rng.integers(0, 255, (352, 320, 3), np.uint8) for _ in range(length)] for length in (60, 40, 20, 1, 1)]
    write_replay(clips, tmp_path / "replay.mp4")
    assert (tmp_path / "replay.mp4").stat().st_size <= MAX_BYTES
    with av.open(str(tmp_path / "replay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.width, stream.height) == ("h264", 960, 704)
        assert sum(1 for _ in container.decode(stream)) == 60


@pytest.fixture(scope="module")
def page_folder(data_folder, tmp_path_factory):
    """A JAT that was trained, evaluated and filmed for a moment, by the commands of the README."""
    folder = tmp_path_factory.mktemp("page") / "small-jat"
    sizes = (
        "--hidden-size 64 --num-layers 2 --num-heads 2 --window 16 --image-window 2 --batch-size 2 --steps 4".split()
    )
    commands = [
        ["examples/train.py", "--data", data_folder, "--output", folder, *sizes, "--steps", "4", "--save-every", "2"],
        ["examples/evaluate.py", "--model", folder, "--tasks", *TASKS, "--episodes", "2", "--max-episode-steps", "20"],
        ["examples/report.py", folder, "--max-episode-steps", "8"],
    ]
    for command in commands:
        result = subprocess.run(
            [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    return folder


def test_the_models_card(page_folder):
    card = ModelCard.load(page_folder / "README.md")
    assert card.data.pipeline_tag == "reinforcement-learning"
    assert card.data.library_name == "transformers"
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    evaluation = read_evaluation(page_folder / "evaluation.json")
    for played in evaluation.scores:
        assert results[played.task, "mean_reward"] == pytest.approx(played.mean, abs=1e-4)
    assert (REACH, "success") in results
    assert (PONG, "human_normalized") in results
    assert f"| {REACH}" in card.text
    assert "Episodes were cut after 20 timesteps" in card.text
    assert "4 tasks, 4 steps, by" in card.text
    assert "(report/learning.png)" in card.text
    assert "trust_remote_code=True" in card.text
    entries = parse_eval_result_entries(yaml.safe_load((page_folder / ".eval_results/jat.yaml").read_text()))
    assert {entry.task_id for entry in entries} == {played.task for played in evaluation.scores}


ACTING = """
    import sys
    sys.modules.update(dict.fromkeys({hidden!r}))
    import numpy as np
    from gymnasium import spaces
    if not {hidden!r}:
        import modeling_jat, processing_jat
    from transformers import AutoModel, AutoProcessor
    options = {{"trust_remote_code": True}} if {hidden!r} else {{}}
    model = AutoModel.from_pretrained({source!r}, **options)
    processor = AutoProcessor.from_pretrained({source!r}, **options)
    model.reset(spaces.Box(-1, 1, (3,)))
    observation = np.linspace(-1, 1, 5, dtype=np.float32)
    print(model.get_next_action(processor({{"continuous_observation": observation}})).tolist())
"""


def act(source, cwd, hidden=(), **environment):
    script = textwrap.dedent(ACTING).format(source=str(source), hidden=list(hidden))
    environment = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_model_on_the_hub(page_folder, tmp_path):
    """All of it in one commit, that loads with and without this package and acts as before; the next push tidies up."""
    with running_hub(lfs=(".safetensors", ".mp4", ".png")) as hub:
        environment = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

        def push():
            command = [sys.executable, "-m", "dataset_builder", "push", str(page_folder), "--repo-id", "jat/small"]
            result = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stderr
            return result.stdout

        assert push().strip().endswith("/jat/small")
        files = set(hub.files("models", "jat/small"))
        expected = {"README.md", "replay.mp4", "model.safetensors", "modeling_jat.py", ".eval_results/jat.yaml"}
        assert expected | {"report/index.html", "report/tasks.png", "evaluation.json"} <= files
        assert not [path for path in files if path.startswith("checkpoints") or path.endswith((".jsonl", ".bin"))]
        card = ModelCard(hub.files("models", "jat/small")["README.md"].decode())
        assert card.data.model_name == "small"
        assert 'from_pretrained("jat/small")' in card.text
        validate = "from huggingface_hub import ModelCard; ModelCard.load('jat/small').validate()"
        subprocess.run([sys.executable, "-c", validate], env={**os.environ, **environment}, check=True)

        actions = act(page_folder, ROOT)
        assert act("jat/small", ROOT, **environment) == actions
        packages = ["modeling_jat", "processing_jat", "dataset_builder"]
        assert act("jat/small", tmp_path, packages, **environment) == actions

        hub.repositories["models", "jat/small"].branches["main"]["report/old.png"] = b"old"
        push()
        assert set(hub.files("models", "jat/small")) == files


def test_what_is_no_model_has_no_page(tmp_path):
    with pytest.raises(ValueError, match="holds no model: expected config"):
        write_model_card(tmp_path)
    result = subprocess.run(
        [sys.executable, "examples/report.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "evaluation.json is not there" in result.stderr


def test_a_card_says_what_there_is(make_model, processor, tmp_path, monkeypatch):
    """Texts in the training make a widget; without an evaluation there is no table."""
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    training = {"data": ["data", "jat/mix"], "versions": {}}
    before = {**training, "command": "python first", "tasks": ["oscar", "ok-vqa"], "steps": 3}
    training |= {"command": "python then", "tasks": ["ok-vqa"], "steps": 2000, "before": before}
    (tmp_path / "training.json").write_text(json.dumps(training))
    make_video(tmp_path / "report/x.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "report/frame.png")
    card = ModelCard.load(write_model_card(tmp_path, "jat/small"))
    assert card.data.datasets == ["jat/mix"]
    assert [set(example) - {"example_title"} for example in card.data.widget] == [{"text"}, {"src"}]
    assert "## Evaluation" not in card.text
    first, then = card.text[card.text.index("## Training") :].split("\nFrom there, ")
    assert "2 tasks, 3 steps, by\n\n```\npython first\n" in first
    assert then.startswith("1 task, 2,000 steps, by\n\n```\npython then\n")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("dataset_builder.publish.get_token", lambda: None)
    assert main(["push", str(tmp_path), "--repo-id", "jat/small"]) == 2


def test_tasks_without_scores_are_shown_without(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    register_task(TaskSpec(name="own-cart", env_id="CartPole-v1", instruction="balance"))
    evaluation = make_evaluation(score("own-cart", 20.0, 30.0), score(HOPPER, 5.0))
    assert task_figures(evaluation.scores[0])["normalized"] is None
    assert "own-cart" in write_report(evaluation, tmp_path).read_text()
    assert "own-cart" in format_evaluation(evaluation)
