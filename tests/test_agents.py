"""The agent that comes with the package."""

import pytest
import torch
from evaluate_text import write
from transformers import AutoModel, AutoProcessor

from dataset_builder import evaluate, make_env, select_tasks
from dataset_builder.evaluation import AgentPolicy
from dataset_builder.report import read_evaluation, task_figures
from modeling_jat import pretrained

FOLDER = pretrained("jat-mini")


@pytest.fixture(scope="module")
def agent():
    torch.set_num_threads(1)
    return AgentPolicy(AutoModel.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER), prompted=True)


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 40e6


def test_it_is_stored_in_half_precision_and_computes_in_float32(agent):
    assert agent.model.dtype == torch.float32
    assert (FOLDER / "model.safetensors").stat().st_size < 2.1 * agent.model.num_parameters()


def test_an_agent_that_does_not_exist():
    with pytest.raises(ValueError, match="no agent 'jat-maxi' comes with the package: expected one of jat-mini"):
        pretrained("jat-maxi")


@pytest.mark.parametrize("task", ["babyai-go-to-obj", "metaworld-door-open", "mujoco-swimmer"])
def test_it_plays_starts_that_are_in_no_data(agent, task):
    score = evaluate(agent, task, episodes=5, num_envs=5, progress=False)
    assert task_figures(score)["normalized"] > 0.5


@pytest.mark.parametrize(
    ("task", "caption"),
    [("atari-freeway", "Freeway"), ("atari-breakout", "Breakout, 5 lives left"), ("atari-tennis", "Tennis")],
)
def test_it_names_a_game_from_a_frame(agent, task, caption):
    with make_env(task, render_mode="rgb_array") as env:
        env.reset(seed=0)
        _, written = write(agent.model, agent.processor, {"images": env.render()}, max_new_tokens=64)
    assert written == caption


def test_its_card_is_of_an_evaluation_of_every_task():
    evaluation = read_evaluation(FOLDER / "evaluation.json")
    assert {score.task for score in evaluation.scores} == {task.name for task in select_tasks("all")}
    card = (FOLDER / "README.md").read_text()
    for score in evaluation.scores:
        assert len(score.episodes) >= 20
        assert f"| {score.task} " in card
