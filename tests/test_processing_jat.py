import json

import numpy as np
import pytest
import torch
from conftest import PARITY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from transformers.utils import logging

from dataset_builder import make_env
from processing_jat import JatProcessor

PARITY_CALLS = [
    (case, call)
    for case, details in json.loads((PARITY / "manifest.json").read_text()).items()
    if case.startswith("p_")
    for call in details["meta"]["calls"]
]


@pytest.mark.parametrize(("case", "call"), PARITY_CALLS)
def test_parity(parity_case, parity_manifest, case, call):
    arrays = parity_case(case)
    inputs = {}
    for key in arrays.files:
        if key.startswith("in."):
            _, column, *episode = key.split(".")
            values = arrays[key].tolist() if arrays[key].dtype.kind == "U" else arrays[key]
            inputs[column] = [*inputs.get(column, []), values] if episode else values
    published = AutoProcessor.from_pretrained(PARITY / "tiny")
    batch = published(**inputs, **parity_manifest[case]["meta"]["calls"][call])
    expected = [key for key in arrays.files if key.startswith(f"{call}.")]
    assert expected
    for key in expected:
        _, column, *row = key.split(".")
        actual = batch[column][int(row[0])] if row else batch[column]
        assert actual.dtype == arrays[key].dtype
        assert np.array_equal(actual, arrays[key])


def test_published_image_preprocessing(parity_case):
    arrays = parity_case("e_pixels_text")
    published = AutoProcessor.from_pretrained(PARITY / "tiny_vision")
    batch = published(images=list(arrays["in.images_uint8"]), text=["a", "b"], padding=True, return_tensors="np")
    assert np.array_equal(batch["pixel_values"], arrays["in.pixel_values"])


class TestTimestep:
    @pytest.mark.parametrize(
        ("task", "column", "shape"),
        [
            ("metaworld-reach", "continuous_observations", (1, 1, 39)),
            ("babyai-go-to-local", "discrete_observations", (1, 1, 212)),
            ("atari-pong", "image_observations", (1, 1, 4, 84, 84)),
        ],
    )
    def test_one_environment(self, processor, task, column, shape):
        with make_env(task) as env:
            inputs = processor(env.reset(seed=0)[0], reward=1.5)
        assert set(inputs) == {column, "rewards"}
        assert inputs[column].shape == shape
        assert inputs["rewards"].tolist() == [[1.5]]
        assert all(isinstance(value, torch.Tensor) for value in inputs.values())

    def test_several_environments(self, processor):
        observation = {
            "discrete_observation": np.zeros((3, 148), np.int64),
            "text_observation": ["go to the red ball", "go to", "go to the red ball"],
        }
        inputs = processor(observation, reward=np.array([0.0, 1.0, 2.0]))
        assert inputs["discrete_observations"].shape == (3, 1, 212)
        assert inputs["rewards"].tolist() == [[0.0], [1.0], [2.0]]
        assert torch.equal(inputs["discrete_observations"][0], inputs["discrete_observations"][2])
        assert not torch.equal(inputs["discrete_observations"][0], inputs["discrete_observations"][1])

    def test_no_reward_is_zero(self, processor):
        assert processor({"continuous_observation": np.zeros(3)})["rewards"].tolist() == [[0.0]]

    def test_pixels_are_scaled_as_published(self, processor):
        frames = np.zeros((84, 84, 4), np.uint8)
        frames[..., 0] = 255
        image = processor({"image_observation": frames})["image_observations"][0, 0]
        assert image[0].unique().tolist() == [1.0]
        assert image[1:].unique().tolist() == [-1.0]

    def test_pixels_may_stay_pixels(self, processor):
        plain = JatProcessor(processor.image_processor, processor.tokenizer, rescale_observations=False)
        frames = np.arange(84 * 84 * 4, dtype=np.uint32).reshape(84, 84, 4).astype(np.uint8)
        image = plain({"image_observation": frames})["image_observations"]
        assert image.dtype == torch.uint8
        assert np.array_equal(image[0, 0], np.moveaxis(frames, -1, 0))

    def test_a_long_mission_is_cut(self, processor, monkeypatch):
        """With one warning, however many there are."""
        warnings = []
        logging.get_logger("processing_jat.processing_jat").warning_once.cache_clear()
        monkeypatch.setattr(
            logging.get_logger("processing_jat.processing_jat"), "warning", lambda message: warnings.append(message)
        )
        tokens = processor.tokenizer("go to the red ball")["input_ids"]
        for times in (30, 40):
            mission = "go to the red ball" * times
            inputs = processor({"discrete_observation": np.zeros(148, np.int64), "text_observation": mission})
            assert inputs["discrete_observations"].shape == (1, 1, 212)
            assert inputs["discrete_observations"][0, 0, 148 : 148 + len(tokens)].tolist() == tokens
        assert warnings == ["missions of more than 64 tokens are cut"]

    @pytest.mark.parametrize(
        ("observation", "message"),
        [
            ({"position": np.zeros(3)}, r"unknown observation keys \['position'\]"),
            ({"continuous_observation": np.array([0.0, np.nan])}, "row 0 at timestep 0 is not finite"),
            ({"continuous_observation": np.zeros(377)}, "at most 376 values a timestep, got 377"),
            (
                {"continuous_observation": np.zeros((2, 2, 2))},
                r"shape \(size\), or \(environments, size\), got float64 of shape \(2, 2, 2\)",
            ),
            ({"continuous_observation": np.array(["a"])}, r"expected float32 of shape \(timesteps, size\), got <U1"),
            ({"discrete_observation": np.array([0.5])}, r"expected int64 of shape \(timesteps, size\), got float64"),
            ({"discrete_observation": np.array([-1])}, "must not be negative"),
            ({"discrete_observation": np.zeros(213, int)}, "at most 212 values a timestep, got 213"),
            ({"text_observation": "go"}, "need discrete_observations"),
            ({"image_observation": np.zeros((84, 84))}, r"expected shape \(height, width, channels\)"),
        ],
    )
    def test_wrong_observations_are_refused(self, processor, observation, message):
        with pytest.raises(ValueError, match=message):
            processor(observation)


def trajectory(length, size=3, actions=2):
    rng = np.random.default_rng(length)
    return {
        "continuous_observations": rng.normal(size=(length, size)).astype(np.float32),
        "continuous_actions": rng.normal(size=(length, actions)).astype(np.float32),
        "rewards": rng.normal(size=length).astype(np.float32),
    }


def batch_of(lengths):
    rows = [trajectory(length) for length in lengths]
    return {column: [row[column] for row in rows] for column in rows[0]}


class TestSequences:
    @settings(deadline=None, max_examples=50)
    @given(
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
        max_length=st.integers(2, 60),
        side=st.sampled_from(["right", "left"]),
    )
    def test_preserve_loses_nothing(self, processor, lengths, max_length, side):
        """Truncation into further rows and padding hold every timestep exactly once."""
        batch = batch_of(lengths)
        result = processor(
            **batch,
            truncation="preserve",
            truncation_side=side,
            padding=True,
            max_length=max_length,
            return_tensors="np",
        )
        mask = result["attention_mask"].astype(bool)
        assert mask.shape[1] <= max_length // 2
        assert mask.sum() == sum(lengths)
        assert (np.diff(result["attention_mask"], axis=1) <= 0).all()  # padding stands at the end
        for column in batch:
            kept = result[column][mask].reshape(mask.sum(), -1)
            given_rows = np.concatenate(batch[column]).reshape(mask.sum(), -1)
            assert np.array_equal(np.sort(kept, axis=0), np.sort(given_rows, axis=0))

    @settings(deadline=None, max_examples=50)
    @given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), max_length=st.integers(2, 60))
    def test_padding_to_max_length(self, processor, lengths, max_length):
        result = processor(**batch_of(lengths), truncation=True, padding="max_length", max_length=max_length)
        assert result["rewards"].shape == (len(lengths), max_length // 2)
        assert result["attention_mask"].sum(axis=1).tolist() == [min(length, max_length // 2) for length in lengths]

    @pytest.mark.parametrize("task", ["metaworld-reach", "babyai-go-to-red-ball-no-dists", "atari-pong"])
    def test_rows_of_a_data_set(self, processor, load_task, task):
        """Are the same batch in every format."""
        dataset = load_task(task)
        batches = [processor.pad([dataset.with_format(name)[i] for i in range(3)]) for name in (None, "numpy", "torch")]
        frame = dataset.with_format("pandas")[:3]
        batches.append(processor.pad(frame.to_dict("records")))
        assert batches[0]["rewards"].shape == batches[0]["attention_mask"].shape
        for batch in batches[1:]:
            assert set(batch) == set(batches[0])
            for column, values in batches[0].items():
                assert batch[column].dtype == values.dtype
                assert torch.equal(batch[column], values)

    def test_tensors_are_taken(self, processor):
        batch = batch_of([3, 5])
        tensors = {
            "continuous_observations": [
                torch.tensor(row, requires_grad=True) for row in batch["continuous_observations"]
            ],
            "continuous_actions": [list(torch.tensor(row)) for row in batch["continuous_actions"]],
            "rewards": [torch.tensor(row, dtype=torch.bfloat16) for row in batch["rewards"]],
        }
        expected = processor.pad([trajectory(3), trajectory(5)])
        result = processor(**tensors, padding=True, return_tensors="pt")
        assert torch.equal(result["continuous_observations"], expected["continuous_observations"])
        assert torch.equal(result["continuous_actions"], expected["continuous_actions"])
        assert torch.equal(result["rewards"], expected["rewards"].bfloat16().float())

    def test_channels_may_come_first(self, processor):
        frames = np.random.default_rng(0).integers(0, 256, (3, 84, 84, 4), dtype=np.uint8)
        rest = {"discrete_actions": [np.zeros(3, int)], "rewards": [np.zeros(3)], "return_tensors": "pt"}
        last = processor(image_observations=[frames], **rest)
        first = processor(image_observations=[torch.from_numpy(frames).movedim(-1, 1)], **rest)
        assert torch.equal(first["image_observations"], last["image_observations"])

    def test_defaults_are_saved_with_the_processor(self, processor, tmp_path):
        options = {"padding": "max_length", "truncation": True, "max_length": 8, "return_tensors": "pt"}
        JatProcessor(processor.image_processor, processor.tokenizer, default_kwargs=options).save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert loaded(**batch_of([3, 5]))["rewards"].shape == (2, 4)
        assert loaded(**batch_of([3, 5]), max_length=10)["rewards"].shape == (2, 5)
        assert loaded.pad([trajectory(3), trajectory(5)])["rewards"].shape == (2, 4)
        assert processor(**batch_of([3, 5]))["rewards"][0].shape == (3,)
        with pytest.raises(TypeError, match="unknown options pad_to: expected columns or some of padding"):
            processor(**batch_of([3, 5]), pad_to=8)
        with pytest.raises(TypeError, match="unknown options pad_to"):
            JatProcessor(processor.image_processor, processor.tokenizer, default_kwargs={"pad_to": 8})

    def test_pad_collates_rows(self, processor):
        result = processor.pad([trajectory(3), trajectory(5)])
        assert result["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        assert result["continuous_observations"].shape == (2, 5, 3)

    def test_pad_refuses_a_mix(self, processor):
        other = {
            "discrete_observations": np.zeros((3, 5), int),
            "discrete_actions": np.zeros(3, int),
            "rewards": np.zeros(3),
        }
        with pytest.raises(ValueError, match="rows of one kind, got rows with the columns"):
            processor.pad([trajectory(3), other])
        with pytest.raises(ValueError, match="empty batch"):
            processor.pad([])

    def test_a_timestep_may_be_one_token(self, processor):
        one = JatProcessor(processor.image_processor, processor.tokenizer, tokens_per_timestep=1)
        options = {"truncation": True, "max_length": 8, "return_tensors": "pt"}
        for some, timesteps in ((processor, 4), (one, 8)):
            assert some.pad([trajectory(20)], **options)["continuous_actions"].shape[1] == timesteps

    def test_prompts_are_padded_on_the_left(self, processor):
        result = processor.pad([trajectory(3), trajectory(3), trajectory(3)], prompts=["reach the goal", "reach", None])
        ids, mask = result["prompt_input_ids"], result["prompt_attention_mask"]
        assert ids.shape == mask.shape
        assert mask[:, -1].tolist() == [1, 1, 0]
        assert (mask.diff(dim=1) >= 0).all()
        assert processor.tokenizer.decode(ids[0][mask[0].bool()]) == "reach the goal"
        assert processor.tokenizer.decode(ids[1][mask[1].bool()]) == "reach"
        assert "prompt_input_ids" not in processor.pad([trajectory(3)], prompts=[None])
        with pytest.raises(ValueError, match="a prompt for each of 2 rows, got 1"):
            processor.pad([trajectory(3), trajectory(3)], prompts=["reach"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda batch: batch.pop("rewards"), "rewards are missing beside continuous_observations"),
            (lambda batch: batch.update(rewards=batch["rewards"][:1]), "different numbers of rows"),
            (lambda batch: batch.update(rewards=[batch["rewards"][0], batch["rewards"][1][:2]]), "row 1 is ragged"),
            (lambda batch: batch["continuous_actions"].__setitem__(1, np.zeros((5, 3))), "rows have different sizes"),
            (lambda batch: batch["rewards"][1].__setitem__(2, np.inf), "row 1 at timestep 2 is not finite"),
            (lambda batch: batch.update(text="go"), "a batch holds trajectories or text"),
            (lambda batch: batch.update(padding=False), r"rows of \[3, 5\] timesteps cannot become one tensor"),
            (lambda batch: batch.update(padding="widest"), "padding must be"),
            (lambda batch: batch.update(truncation="first"), "truncation must be"),
            (lambda batch: batch.update(truncation=True, max_length=1), "leaves no room"),
        ],
    )
    def test_wrong_batches_are_refused(self, processor, change, message):
        batch = {**batch_of([3, 5]), "padding": True, "return_tensors": "pt"}
        change(batch)
        with pytest.raises(ValueError, match=message):
            processor(**batch)

    def test_every_fault_is_named_at_once(self, processor):
        batch = batch_of([3, 5])
        batch["continuous_observations"][0][0, 0] = np.nan
        batch["continuous_actions"][1] = batch["continuous_actions"][1][:4]
        with pytest.raises(ValueError, match=r"row 1 is ragged.*continuous_observations: a value of row 0"):
            processor(**batch)
        batch["continuous_actions"] = [[["left", "up"]] * 3, [[1.0], [1.0, 2.0]]]
        expected = r"expected float32 of shape \(timesteps, size\), got"
        message = (
            rf"^metaworld-reach: continuous_actions, row 0: {expected} <U4 of shape \(3, 2\); continuous_actions, row "
            rf"1: {expected} values that make no array .*; continuous_observations: a value of row 0"
        )
        with pytest.raises(ValueError, match=message):
            processor(**batch, task="metaworld-reach")

    def test_an_empty_episode_is_named(self, processor):
        empty = {
            "discrete_observations": [np.zeros((0, 148), int)],
            "text_observations": [[]],
            "rewards": [np.zeros(0)],
        }
        with pytest.raises(ValueError, match="row 0 has no timestep"):
            processor(**empty)

    def test_nothing(self, processor):
        with pytest.raises(ValueError, match="nothing to process"):
            processor()


def test_image_and_text(processor):
    image = Image.new("RGB", (300, 200), "red")
    batch = processor(images=[image], text=["go to the red ball"], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 224, 224)
    assert processor.batch_decode(batch["input_ids"]) == ["go to the red ball"]
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        processor(images=[image, image], text=["go"], return_tensors="pt")


@pytest.mark.parametrize("size", [(160, 210), (210, 160)])
def test_the_edges_of_an_image_are_seen(processor, size):
    image = np.zeros((*size, 3), np.uint8)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = 255
    seen = processor(images=[image], return_tensors="pt")["pixel_values"][0, 0]
    for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]):
        assert edge.min() > seen[1:-1, 1:-1].median() + 1


def test_round_trip(processor, tmp_path):
    changed = JatProcessor(processor.image_processor, processor.tokenizer, mission_length=32, max_discrete_size=180)
    changed.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (loaded.mission_length, loaded.max_discrete_size) == (32, 180)
    observation = {"discrete_observation": np.zeros(148, np.int64), "text_observation": "go to the red ball"}
    assert torch.equal(loaded(observation)["discrete_observations"], changed(observation)["discrete_observations"])
