"""Text subsets of one's own: the captions of examples/captions.py."""

import importlib
import re

import pytest
from datasets import load_dataset
from evaluate_text import write
from PIL import Image

from dataset_builder import make_env, tasks, text
from dataset_builder.__main__ import main
from dataset_builder.builder import build
from processing_jat import JatProcessor

PLACE = r"(in hand|(\d ahead)?( ?\d (left|right))?)"
THING = rf"an? ((open|closed|locked) )?(red|green|blue|purple|yellow|grey) (ball|box|key|door) {PLACE}"


@pytest.fixture(scope="module", autouse=True)
def captions():
    """The module, whose subsets are registered as long as these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
        patch.setattr(text, "SOURCES", dict(text.SOURCES))
        yield importlib.import_module("captions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    build(["game-captions", "view-captions", "missions"], folder, episodes=40, progress=False)
    return folder


def test_captions_say_what_frames_show(folder):
    games, views = (load_dataset(str(folder), name, split="train") for name in ("game-captions", "view-captions"))
    assert len(games) == len(views) == 36
    assert {row["images"].size for row in games} == {(160, 210)}
    assert {row["images"].size for row in views} == {(112, 112)}
    names = {re.sub(", [0-9]+ li(fe|ves) left", "", row["text"]) for row in games}
    assert names == {"Alien", "Amidar", "Assault", "Asterix", "Asteroids"}
    assert all(re.fullmatch(rf"nothing|{THING}(, {THING})*", row["text"]) for row in views)


def test_frames_are_of_whole_episodes(folder):
    captions = set(load_dataset(str(folder), "game-captions", split="train")["text"])
    for game in ("Alien", "Assault", "Asterix", "Asteroids"):
        assert len([caption for caption in captions if caption.startswith(f"{game}, ")]) >= 3


def test_a_caption_names_the_nearest_things_first(captions):
    with make_env("babyai-go-to-local", render_mode="rgb_array") as env:
        observation, _ = env.reset(seed=3)
        caption = captions.describe_view(env.unwrapped.gen_obs_grid()[0])
    cells = observation["discrete_observation"][1:].reshape(7, 7, 3)
    kinds = {4: "door", 5: "key", 6: "ball", 7: "box"}
    seen = {(6 - y, x - 3): kinds[kind] for x in range(7) for y in range(7) if (kind := cells[x, y, 0]) in kinds}
    said = []
    for words in caption.split(", "):
        ahead, side = re.search(r"(\d) ahead", words), re.search(r"(\d) (left|right)", words)
        right = int(side[1]) * (1 if side[2] == "right" else -1) if side else 0
        said.append((int(ahead[1]) if ahead else 0, right))
        assert seen[said[-1]] in words
    assert len(said) == min(len(seen), 4)
    distances = [ahead + abs(right) for ahead, right in said]
    assert distances == sorted(distances)


def test_missions_are_those_of_the_levels(folder):
    missions = [row["text"] for row in load_dataset(str(folder), "missions", split="train")]
    assert len(missions) == 36
    assert len(set(missions)) > 10
    verbs = ("go to", "pick up", "open", "put")
    assert all(mission.startswith(verbs) or mission.startswith("follow") for mission in missions)


def test_a_longer_subset_begins_like_a_shorter_one(folder, tmp_path):
    build("missions", tmp_path / "longer", episodes=60, progress=False)
    few, many = (load_dataset(str(path), "missions", split="train") for path in (folder, tmp_path / "longer"))
    assert few["text"][:] == many["text"][: len(few)]


def test_no_more_rows_are_made_than_wanted(captions, tmp_path, monkeypatch):
    made, mission = [], captions._mission
    monkeypatch.setattr(captions, "_mission", lambda env, rng: made.append(env) or mission(env, rng))
    build("missions", tmp_path, episodes=40, progress=False)
    assert len(made) == 40


def test_a_chunk_does_not_make_the_rows_of_the_one_before_again(captions, tmp_path, monkeypatch):
    made, mission = [], captions._mission
    monkeypatch.setattr(captions, "_mission", lambda env, rng: made.append(env) or mission(env, rng))
    monkeypatch.setattr("dataset_builder.text.ROWS_PER_CHUNK", 32)
    build("missions", tmp_path, episodes=96, progress=False)
    assert len(made) <= 96 + 2 * captions.ROWS_PER_PART  # a source goes on at the beginning of a part


def test_it_verifies_like_the_others(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    assert "3 tasks verified: 0 faults" in capsys.readouterr().out
    assert "| view-captions | `captions` | 40 |" in (folder / "README.md").read_text()


def test_what_is_written_ends_where_the_positions_do(make_model):
    """A model that has not learnt to end a text, with 4 patches of an image and 12 positions."""
    model = make_model(image_size=32, max_position_embeddings=12)
    row = {"images": Image.new("RGB", (32, 32)), "text": "an open blue door 4 ahead"}
    processor = JatProcessor.from_texts([row["text"]], 300, image_size=32, image_seq_length=4)
    _, written = write(model, processor, row, max_new_tokens=64)
    _, cut = write(model, processor, row, max_new_tokens=8)
    assert written.startswith(cut)
    assert len(written) > len(cut)
