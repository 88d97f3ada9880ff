from functools import partial

import numpy as np
import pytest
import torch
from conftest import KINDS, PARITY, continuous_batch, discrete_batch, image_batch, make_config, train
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from modeling_jat import JatConfig, JatModelForCausalLM, modeling_jat

HIDDEN_TOLERANCE, LOSS_TOLERANCE = 3e-5, 1e-5
TRAJECTORY_VARIANTS = [
    *((case, variant) for case in ("a_continuous",) for variant in ("none", "mask", "weight", "mask_weight", "noloss")),
    *(("b_discrete", variant) for variant in ("ones", "noloss")),
    *(("b_discrete_masked", variant) for variant in ("mask", "mask_weight")),
    *(("c_image", variant) for variant in ("ones", "mask", "mask_weight", "noloss")),
    # Kinds that no task mixes, and the limits: one value, all 377, the full context.
    *(("h_continuous_discrete", variant) for variant in ("ones", "mask_weight")),
    *(
        (case, variant)
        for case in ("h_discrete_continuous", "h_image_continuous", "h_one_value", "h_most_values", "h_full_context")
        for variant in ("none", "ones", "mask_weight")
    ),
]


class TestParity:
    """Published checkpoints give the published outputs, see tests/fixtures/parity."""

    @pytest.mark.parametrize(("case", "variant"), TRAJECTORY_VARIANTS)
    @torch.no_grad()
    def test_trajectories(self, parity_model, parity_case, case, variant):
        arrays = parity_case(case)
        inputs = {
            key.split(".")[-1]: torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith(("in.", f"{variant}.in."))
        }
        outputs = parity_model("tiny")(**inputs, return_loss=variant != "noloss", output_hidden_states=True)
        batch, length = inputs["rewards"].shape
        real = inputs.get("attention_mask", torch.ones(batch, length)).bool()
        compared = 0
        for key in arrays.files:
            name = key.removeprefix(f"{variant}.")
            if name == key or name.startswith("in."):
                continue
            if name.endswith("loss"):
                if variant == "noloss":  # published: the constant 0.0 for discrete observations
                    assert outputs.get(name) is None
                    continue
                assert outputs[name].item() == pytest.approx(arrays[key].item(), abs=LOSS_TOLERANCE)
            else:
                actual = outputs.hidden_states[-1] if name == "last_hidden_state" else outputs[name]
                mask = real.repeat_interleave(actual.shape[1] // length, dim=1)
                torch.testing.assert_close(
                    actual[mask], torch.from_numpy(arrays[key])[mask], atol=HIDDEN_TOLERANCE, rtol=0
                )
            compared += 1
        assert compared >= 2

    @pytest.mark.parametrize("case", ["a_continuous", "b_discrete", "c_image"])
    @torch.no_grad()
    def test_embeddings(self, parity_model, parity_case, case):
        arrays = parity_case(case)
        inputs = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("in.")}
        model = parity_model("tiny")
        tokens = torch.stack([model.embed_observations(inputs), model.embed_actions(inputs)], dim=2).flatten(1, 2)
        torch.testing.assert_close(tokens, torch.from_numpy(arrays["inputs_embeds"]), atol=HIDDEN_TOLERANCE, rtol=0)

    @pytest.mark.parametrize(
        ("variant", "mask"), [("none", None), ("mask", "attention_mask"), ("left_mask", "left_mask")]
    )
    @torch.no_grad()
    def test_text(self, parity_model, parity_case, variant, mask):
        arrays = parity_case("d_text")
        input_ids = torch.from_numpy(arrays["in.input_ids"])
        mask = torch.from_numpy(arrays[f"in.{mask}"]) if mask else None
        outputs = parity_model("tiny")(input_ids=input_ids, attention_mask=mask)
        real = torch.ones_like(input_ids).bool() if mask is None else mask.bool()
        expected = torch.from_numpy(arrays[f"{variant}.logits"])
        torch.testing.assert_close(outputs.logits[real], expected[real], atol=HIDDEN_TOLERANCE, rtol=0)
        if variant == "left_mask":
            # The published loss also counts each row's first real token, predicted from padding. Ours does not: it is
            # the published logits' loss over the tokens that follow a real one.
            predicted = real[:, 1:] & real[:, :-1]
            loss = torch.nn.functional.cross_entropy(expected[:, :-1][predicted], input_ids[:, 1:][predicted])
        else:
            loss = torch.from_numpy(arrays[f"{variant}.loss"])
        assert outputs.loss.item() == pytest.approx(loss.item(), abs=LOSS_TOLERANCE)

    @torch.no_grad()
    def test_text_of_full_length(self, parity_model, parity_case):
        arrays = parity_case("d_text")
        outputs = parity_model("tiny")(input_ids=torch.from_numpy(arrays["in.input_ids_64"]))
        assert outputs.loss.item() == pytest.approx(arrays["full.loss"].item(), abs=LOSS_TOLERANCE)
        np.testing.assert_allclose(outputs.logits[:, -4:], arrays["full.logits_last4"], atol=HIDDEN_TOLERANCE)

    @pytest.mark.parametrize("variant", ["none", "mask"])
    @torch.no_grad()
    def test_image_and_text(self, parity_model, parity_case, variant):
        arrays = parity_case("e_pixels_text")
        mask = torch.from_numpy(arrays["in.attention_mask"]) if variant == "mask" else None
        outputs = parity_model("tiny_vision")(
            input_ids=torch.from_numpy(arrays["in.input_ids"]),
            pixel_values=torch.from_numpy(arrays["in.pixel_values"]),
            attention_mask=mask,
        )
        assert outputs.loss.item() == pytest.approx(arrays[f"{variant}.loss"].item(), abs=LOSS_TOLERANCE)
        real = np.ones((2, 25), bool)
        if mask is not None:
            real[:, 1:] = mask
        last, first = arrays[f"{variant}.logits_last25"], arrays[f"{variant}.logits_first2"]
        np.testing.assert_allclose(outputs.logits[:, -25:].numpy()[real], last[real], atol=HIDDEN_TOLERANCE)
        np.testing.assert_allclose(outputs.logits[:, :2], first, atol=HIDDEN_TOLERANCE)

    @torch.no_grad()
    def test_image_alone_and_text_alone(self, parity_model, parity_case):
        arrays = parity_case("e_pixels_text")
        model = parity_model("tiny_vision")
        pixel_values = torch.from_numpy(arrays["in.pixel_values"])
        outputs = model(pixel_values=pixel_values, return_loss=False)
        np.testing.assert_allclose(outputs.logits[:, -2:], arrays["image_only.logits_last2"], atol=HIDDEN_TOLERANCE)
        patches = model.vit_encoder(pixel_values)[:, :3]
        np.testing.assert_allclose(patches, arrays["patch_embeddings_first3"], atol=HIDDEN_TOLERANCE)
        outputs = model(input_ids=torch.from_numpy(arrays["in.input_ids"]))
        assert outputs.loss.item() == pytest.approx(arrays["text_only.loss"].item(), abs=LOSS_TOLERANCE)

    def test_acting(self, parity_model, parity_case):
        """The first 31 steps; after that the published cache gives every token the same positions, and ours forgets."""
        arrays = parity_case("f_rollout_continuous")
        model = parity_model("tiny")
        model.reset(spaces.Box(-100, 100, (4,)))  # wide: the published agent does not clip
        for t in range(31):
            inputs = {
                "continuous_observations": torch.from_numpy(arrays["in.continuous_observation"][None, None, t]).float(),
                "rewards": torch.from_numpy(np.nan_to_num(arrays["in.reward"][None, None, t])).float(),
            }
            action = model.get_next_action(inputs)
            np.testing.assert_allclose(action, arrays["cwNone.action"][t], atol=HIDDEN_TOLERANCE)

    @pytest.mark.parametrize("prompt", ["0", "1", "2", "batch"])
    def test_generation(self, parity_model, parity_case, prompt):
        arrays = parity_case("g_generate_text")
        input_ids = torch.from_numpy(arrays[f"in.input_ids.{prompt}"])
        generated = parity_model("tiny").generate(
            input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=20, do_sample=False, pad_token_id=511
        )
        assert np.array_equal(generated, arrays[f"generated.{prompt}"])

    def test_published_files_get_published_behaviour(self):
        published = JatConfig.from_pretrained(PARITY / "tiny")
        assert published.discrete_loss_weighting == "batch_mean"
        assert published.action_feedback == "predicted"
        assert not published.image_rewards
        assert not published.first_token_loss
        assert published.continuous_action_head == "regression"

    def test_weights_are_all_used(self):
        _, info = AutoModel.from_pretrained(PARITY / "tiny", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert not info["unexpected_keys"]


class TestConfig:
    def test_published_size(self):
        """193M as published, of which 2.5M are a decoder that nothing uses; ours is without it."""
        with torch.device("meta"):
            model = JatModelForCausalLM(JatConfig.small(image_rewards=False))
        unused_decoder = 768 * 3180 + 3180 + 15 * 768 + 768 + 768 * 8
        assert round((model.num_parameters() + unused_decoder) / 1e6) == 193

    @pytest.mark.parametrize(("size", "millions"), [("mini", 41), ("small", 190), ("medium", 1501), ("large", 2891)])
    def test_sizes(self, size, millions):
        with torch.device("meta"):
            model = JatModelForCausalLM(getattr(JatConfig, size)())
        assert round(model.num_parameters() / 1e6) == millions

    def test_round_trip_keeps_behaviour(self, tmp_path):
        make_config().save_pretrained(tmp_path)
        loaded = JatConfig.from_pretrained(tmp_path)
        assert loaded.discrete_loss_weighting == "per_timestep"
        assert loaded.image_rewards
        assert loaded.action_feedback == "executed"
        assert loaded.attention_layers == ["global", "local"]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"hidden_size": 65}, r"hidden_size \(65\) must be divisible by num_heads \(2\)"),
            ({"attention_types": [[["global"], 3]]}, "describe 3 layers, expected num_layers = 2"),
            ({"attention_types": [[["global", "near"], 1]]}, "'global' and 'local' only"),
            ({"patch_size": 15}, "divisible by patch_size"),
            ({"context_window": 0}, "context_window must be at least 1 timestep, got 0"),
            ({"action_feedback": "all"}, "'executed' or 'predicted' or 'none'"),
            ({"continuous_action_head": "bins"}, "'regression' or 'discretized'"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, wrong, message):
        with pytest.raises(Exception, match=message):
            make_config(**wrong)


class TestForward:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_learns(self, make_model, kind):
        model, batch = make_model(), KINDS[kind]()
        losses = train(model, steps=10, **batch)
        assert losses[-1] < 0.8 * losses[0]

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_padding_changes_nothing(self, make_model, kind):
        model, batch = make_model(), KINDS[kind]()
        length = batch["rewards"].shape[1]
        padded = {key: torch.cat([value, value[:, :2]], dim=1) for key, value in batch.items()}
        mask = torch.arange(length + 2).expand(2, -1) < length
        plain, masked = model(**batch), model(**padded, attention_mask=mask.long())
        torch.testing.assert_close(masked.loss, plain.loss)
        torch.testing.assert_close(masked.pred_actions[:, :length], plain.pred_actions, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_loss_weights_are_per_timestep(self, make_model, kind):
        model, batch = make_model(), KINDS[kind]()
        weight = torch.zeros_like(batch["rewards"])
        weight[:, 0] = 3.0
        first = {key: value[:, :1] for key, value in batch.items()}
        weighted, alone = model(**batch, loss_weight=weight), model(**first)
        length = weight.shape[1]
        torch.testing.assert_close(weighted.action_loss, 3 * alone.action_loss / length)

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_losses_of_rows_are_theirs_alone(self, make_model, kind):
        model, batch = make_model(), KINDS[kind]()
        mask = torch.tensor([[1] * batch["rewards"].shape[1], [1, 1] + [0] * (batch["rewards"].shape[1] - 2)])
        weight = torch.tensor([[2.0], [3.0]]).expand_as(mask)
        outputs = model(**batch, attention_mask=mask, loss_weight=weight)
        for row, length in enumerate(mask.sum(1)):
            alone = {key: value[[row], :length] for key, value in batch.items()}
            loss = model(**alone, loss_weight=weight[[row], :length]).loss
            torch.testing.assert_close(outputs.row_losses[row], loss, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_losses_of_texts_are_theirs_alone(self, make_model):
        model, ids, mask = make_model(), torch.arange(10).view(2, 5), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
        losses = model(input_ids=ids, attention_mask=mask).row_losses
        torch.testing.assert_close(losses[1], model(input_ids=ids[1:, :3]).loss)

    @settings(deadline=None, max_examples=10)
    @given(
        kind=st.sampled_from(list(KINDS)),
        attention=st.sampled_from(["sdpa", "eager"]),
        lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
        prompts=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    )
    def test_training_on_rows_that_share_one_is_the_same(self, kind, attention, lengths, prompts):
        """Also with prompts, and more tokens than a block of local attention sees."""
        torch.manual_seed(0)
        model = JatModelForCausalLM(make_config(window_size=4, attn_implementation=attention))
        batch = KINDS[kind](len(lengths), max(lengths))
        batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        batch["prompt_input_ids"] = torch.arange(4).repeat(len(lengths), 1)
        batch["prompt_attention_mask"] = (torch.arange(4) >= 4 - torch.tensor(prompts[: len(lengths)])[:, None]).long()

        def gradients(mode):
            model.train(mode).zero_grad()
            outputs = model(**batch)
            outputs.loss.backward()
            return outputs, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

        (packed, packed_gradients), (padded, padded_gradients) = gradients(True), gradients(False)
        real = batch["attention_mask"] == 1
        close = {"atol": 1e-5, "rtol": 1e-3}
        torch.testing.assert_close(packed.pred_actions[real], padded.pred_actions[real], **close)
        torch.testing.assert_close(packed.row_losses, padded.row_losses, **close)
        torch.testing.assert_close(packed_gradients, padded_gradients, **close)

    @settings(deadline=None)
    @given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20))
    def test_packed_sequences_do_not_overlap(self, lengths):
        starts = modeling_jat.pack(lengths, size=9)
        places = [start + place for start, length in zip(starts, lengths, strict=True) for place in range(length)]
        assert len(set(places)) == len(places)
        assert all(start % 9 + length <= 9 for start, length in zip(starts, lengths, strict=True))
        assert 1 + max(starts) // 9 <= max(1, 2 * sum(lengths) / 9)  # of two rows one is more than half full

    @torch.no_grad()
    def test_a_single_timestep_has_no_observation_loss(self, make_model):
        outputs = make_model()(**continuous_batch(length=1))
        assert outputs.observation_loss == 0
        assert torch.isfinite(outputs.loss)

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_observations_that_are_not_learnt_are_not_predicted(self, make_model, kind):
        model, batch = make_model(observation_loss_coef=0.0), KINDS[kind]()
        outputs = model(**batch)
        assert outputs.pred_observations is None
        torch.testing.assert_close(outputs.loss, model.config.action_loss_coef * outputs.action_loss)

    @torch.no_grad()
    def test_a_model_that_predicted_observations_may_stop_to(self, make_model, tmp_path):
        model, batch = make_model(), image_batch()
        model.save_pretrained(tmp_path)
        without = JatModelForCausalLM.from_pretrained(tmp_path, observation_loss_coef=0.0)
        torch.testing.assert_close(without(**batch).pred_actions, model(**batch).pred_actions)
        without.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="missing image_decoder"):
            JatModelForCausalLM.from_pretrained(tmp_path, observation_loss_coef=0.005)

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_actions_need_not_be_seen(self, make_model, kind):
        batch = KINDS[kind]()
        [actions] = (key for key in batch if key.endswith("_actions"))
        others = {**batch, actions: batch[actions].flip(1)}
        seeing, blind = make_model(), make_model(action_feedback="none")
        assert not torch.equal(seeing(**batch).pred_actions, seeing(**others).pred_actions)
        torch.testing.assert_close(blind(**batch).pred_actions, blind(**others).pred_actions)
        # Nor do they take positions.
        timesteps = batch[actions].shape[1]
        model = make_model(action_feedback="none", max_position_embeddings=timesteps)
        assert model(**batch).pred_actions.shape[1] == timesteps
        del batch[actions]
        with pytest.raises(ValueError, match="expected one of continuous_actions, discrete_actions, got none"):
            model(**batch)

    @torch.no_grad()
    def test_actions_do_not_see_the_future(self, make_model):
        model, batch = make_model(), continuous_batch()
        changed = {key: value.clone() for key, value in batch.items()}
        changed["continuous_observations"][:, 4:] += 1
        changed["continuous_actions"][:, 3:] += 1
        torch.testing.assert_close(model(**changed).pred_actions[:, :4], model(**batch).pred_actions[:, :4])

    @torch.no_grad()
    def test_pixels_may_stay_pixels(self, make_model):
        model, batch = make_model(), image_batch()
        pixels = torch.randint(0, 256, batch["image_observations"].shape, dtype=torch.uint8)
        floats = (pixels / 255 - 0.5) / 0.5
        a, b = (model(**{**batch, "image_observations": images}) for images in (pixels, floats))
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.pred_actions, b.pred_actions, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_rewards_reach_every_kind(self, make_model):
        model = make_model()
        for batch in (continuous_batch(), discrete_batch(), image_batch()):
            other = {**batch, "rewards": batch["rewards"] + 1}
            assert not torch.allclose(model(**other).pred_actions, model(**batch).pred_actions)

    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_eager_and_sdpa_agree(self, make_model, kind):
        model, batch = make_model(window_size=4), KINDS[kind]()
        mask = torch.ones_like(batch["rewards"]).long()
        mask[1, 2:] = 0
        sdpa = model(**batch, attention_mask=mask)
        model.set_attn_implementation("eager")
        eager = model(**batch, attention_mask=mask)
        real = mask.bool()
        torch.testing.assert_close(eager.pred_actions[real], sdpa.pred_actions[real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(eager.loss, sdpa.loss)

    @settings(deadline=None, max_examples=30)
    @given(rows=st.integers(1, 200), classes=st.integers(1, 30), seed=st.integers(0, 99))
    def test_cross_entropy_is_torchs(self, rows, classes, seed):
        """Losses and gradients, ignored rows included, whatever the number of rows."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(rows, classes, generator=generator, requires_grad=True)
        chosen = torch.randint(0, classes, (rows,), generator=generator)
        chosen[torch.rand(rows, generator=generator) < 0.2] = -100
        weights = torch.rand(rows, generator=generator)
        losses, gradients = [], []
        for function in (
            modeling_jat.CrossEntropy.apply,
            partial(torch.nn.functional.cross_entropy, reduction="none"),
        ):
            losses.append(function(scores, chosen))
            gradients.append(torch.autograd.grad((losses[-1] * weights).sum(), scores)[0])
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(gradients[0], gradients[1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("padded", [None, "right", "left"])
    def test_attention_of_training_is_that_of_acting(self, make_model, padded, dtype, monkeypatch):
        """Outputs and gradients of blocks of queries are those of attention in one piece."""
        monkeypatch.setattr(modeling_jat, "BLOCK", 5)
        model, batch = make_model(window_size=7, num_layers=3).train(), continuous_batch(length=20)
        mask = torch.ones(2, 20).long()
        if padded:
            mask[1, slice(12, None) if padded == "right" else slice(8)] = 0
            batch["attention_mask"] = mask
        gradients = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            model.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                outputs = model(**batch)
            outputs.loss.backward()
            gradients.append(
                [outputs.pred_actions[mask.bool()], *(block.ln_1.weight.grad for block in model.transformer.h)]
            )
        for blockwise, eager in zip(*gradients, strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(blockwise, eager, atol=tolerance, rtol=10 * tolerance)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda batch: batch.pop("rewards"), "rewards of shape .* are required"),
            (
                lambda batch: batch.pop("continuous_actions"),
                "expected one of continuous_actions, discrete_actions, got none",
            ),
            (lambda batch: batch.update(discrete_batch()), "got continuous_observations, discrete_observations"),
            (lambda batch: batch.update(continuous_observations=torch.zeros(2, 6, 377)), "at most 377 values"),
            (
                lambda batch: batch.update(continuous_batch(length=33)),
                "66 tokens does not fit the model's 64 positions",
            ),
            (
                lambda batch: batch.update(rewards=torch.zeros(3, 6)),
                r"one batch size and number of timesteps, got .*rewards \(3, 6\)",
            ),
            (lambda batch: batch.update(attention_mask=torch.ones(2, 5)), r"attention_mask \(2, 5\)"),
            (lambda batch: batch.update(prompt_input_ids=torch.ones(1, 3).long()), r"prompt_input_ids \(1,\)"),
            (
                lambda batch: (batch.pop("continuous_actions"), batch.update(discrete_actions=torch.full((2, 6), 300))),
                "discrete_actions must be below the vocabulary's 300 tokens, got 300",
            ),
        ],
    )
    def test_wrong_inputs_are_refused(self, make_model, change, message):
        batch = continuous_batch()
        change(batch)
        with pytest.raises(ValueError, match=message):
            make_model()(**batch)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"input_ids": torch.full((1, 2), 300)}, "input_ids must be below"),
            ({"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.zeros(1, 2, 64)}, "got both"),
            ({"input_ids": torch.ones(2, 2).long(), "pixel_values": torch.zeros(1, 3, 224, 224)}, "one batch size"),
        ],
    )
    def test_wrong_text_is_refused(self, make_model, inputs, message):
        with pytest.raises(ValueError, match=message):
            make_model()(**inputs)

    @torch.no_grad()
    def test_many_discrete_values_are_embedded_as_few_are(self, make_model):
        """A large batch reduces the table of tokens first, a small one its values."""
        model, batch = make_model(), discrete_batch()
        assert batch["discrete_observations"].numel() > model.config.vocab_size
        together = model.embed_observations(batch)
        for row in range(2):
            for t in range(6):
                one = {key: value[[row], t : t + 1] for key, value in batch.items()}
                torch.testing.assert_close(model.embed_observations(one)[0, 0], together[row, t])


def test_small_values_are_told_apart_by_their_mu_law(make_model):
    """A value of 0.01 or -0.01 decides about the action, beside others a hundred times as large."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, 6, 1), generator=generator) * 2.0 - 1
    observations = torch.cat([0.01 * signs, torch.randn(8, 6, 4, generator=generator)], dim=-1)
    batch = {"continuous_observations": observations, "continuous_actions": signs, "rewards": torch.zeros(8, 6)}
    plain, featured = (
        train(make_model(mu_law_features=features, normed_embeddings=False), steps=50, **batch)[-1]
        for features in (False, True)
    )
    assert featured < 0.1 * plain


def test_small_differences_are_told_apart_by_sines_and_cosines(make_model):
    """Whether a value is 0.62 or 0.68 decides about the action."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, 6, 1), generator=generator) * 2.0 - 1
    observations = torch.cat([0.65 + 0.03 * signs, torch.randn(8, 6, 4, generator=generator)], dim=-1)
    batch = {"continuous_observations": observations, "continuous_actions": signs, "rewards": torch.zeros(8, 6)}
    plain, featured = (train(make_model(num_frequencies=number), steps=50, **batch)[-1] for number in (0, 4))
    assert featured < 0.1 * plain


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 377), mu_law=st.booleans(), frequencies=st.integers(0, 2))
def test_continuous_values_are_encoded_alike_alone_and_in_a_batch(size, mu_law, frequencies):
    encoder = modeling_jat.ContinuousEncoder(make_config(mu_law_features=mu_law, num_frequencies=frequencies))
    values = torch.randn(2, 10, size, generator=torch.Generator().manual_seed(size))
    alone = torch.stack([encoder(row) for row in values.flatten(0, 1)]).view(2, 10, -1)
    torch.testing.assert_close(encoder(values), alone)


def test_order_is_seen_beside_encoders_that_a_long_training_made_large(make_model):
    """The last action is which of two things was seen first; one block can tell by their positions only."""
    things = torch.eye(3)[torch.tensor([[0, 1, 2], [1, 0, 2]])]
    actions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])[..., None]
    batch = {"continuous_observations": things, "continuous_actions": actions, "rewards": torch.zeros(2, 3)}

    def error(normed):
        model = make_model(num_layers=1, action_feedback="none", normed_embeddings=normed)
        for weight in model.continuous_encoder.parameters():
            weight.data *= 1000
        return train(model, steps=200, **batch)[-1]

    assert error(normed=True) < 0.01 * error(normed=False)


def test_the_mission_finds_its_cell(make_model):
    """The action is which half of the cells holds what the mission names; every cell holds something else."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"max_discrete_value": 1 + 3 * 6 + 2, "mission_length": 2, "discrete_embedding_size": 16}

    def draw(rows):
        cells = 10 + torch.rand(rows, 4, 6, generator=generator).argsort(-1)
        places = torch.randint(6, (rows, 4, 1), generator=generator)
        observations = torch.zeros(rows, 4, sizes["max_discrete_value"], dtype=torch.long)
        observations[..., 1:19:3], observations[..., 19:20] = cells, 20 + cells.gather(-1, places) - 10
        actions = (places[..., 0] >= 3).long()
        return {"discrete_observations": observations, "discrete_actions": actions, "rewards": torch.zeros(rows, 4)}

    seen, unseen = draw(256), draw(256)

    def error(**filters):
        model = make_model(**sizes, **filters)
        train(model, steps=250, **seen)
        with torch.no_grad():
            logits = model.eval()(**unseen).pred_actions
        return float((logits.argmax(-1) != unseen["discrete_actions"]).float().mean())

    assert error(mission_filters=16) < 0.1 < 0.3 < error()


class TestDiscretizedActions:
    """Gato's head for continuous actions."""

    def test_bins_are_finer_near_zero(self, make_model):
        decoder = make_model(continuous_action_head="discretized").discretized_action_decoder
        values = torch.tensor([-300.0, -256.0, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 255.0, 300.0])
        bins = decoder.encode(values)
        assert bins.tolist() == sorted(bins.tolist())
        assert (bins.min(), bins.max()) == (0, 1023)
        decoded = decoder.decode(bins)
        assert (decoded - values)[4:7].abs().max() < 2e-4
        assert (decoded - values)[2:9].abs().max() < 2e-2
        assert torch.equal(decoder.encode(decoder.decode(torch.arange(1024))), torch.arange(1024))

    def test_loss_is_the_cross_entropy_of_the_bins(self, make_model):
        model, batch = make_model(continuous_action_head="discretized", num_action_bins=32), continuous_batch()
        outputs = model(**batch)
        assert outputs.pred_actions.shape == (2, 6, 3, 32)
        bins = model.discretized_action_decoder.encode(batch["continuous_actions"])
        expected = torch.nn.functional.cross_entropy(outputs.pred_actions.flatten(0, 2), bins.flatten())
        torch.testing.assert_close(outputs.action_loss, expected)

    def test_two_modes_are_learnt_apart(self, make_model):
        """Where data show -0.5 as often as 0.5, regression answers 0, which is never right; bins answer one of both."""
        actions = torch.tensor([0.5, -0.5]).repeat(8)[:, None, None].expand(-1, 1, 2)
        batch = {"continuous_observations": torch.ones(16, 1, 3), "rewards": torch.zeros(16, 1)}

        def chosen(head):
            model = make_model(continuous_action_head=head).train()
            train(model, steps=40, loss="action_loss", **batch, continuous_actions=actions)
            model.eval().reset(spaces.Box(-1, 1, (2,)), num_envs=16)
            torch.manual_seed(0)
            return np.abs(model.get_next_action(batch))

        assert chosen("regression").max() < 0.2
        discretized = chosen("discretized")
        assert np.quantile(discretized, 0.1) > 0.4
        assert np.quantile(discretized, 0.9) < 0.6


def acting_inputs(rows, t):
    generator = torch.Generator().manual_seed(t)
    observations = torch.randn(8, 1, 5, generator=generator)
    rewards = torch.randn(8, 1, generator=generator)
    return {"continuous_observations": observations[rows], "rewards": rewards[rows]}


class TestActing:
    @pytest.mark.parametrize("feedback", ["executed", "none"])
    @pytest.mark.parametrize("columns", [True, False])
    @torch.no_grad()
    def test_acting_is_the_forward_pass_step_by_step(self, make_model, feedback, columns, monkeypatch):
        """Whichever product of weights and few rows is faster on this processor."""
        monkeypatch.setattr(modeling_jat, "columns_are_faster", lambda: columns)
        model = make_model(action_feedback=feedback)
        space = spaces.Box(-0.01, 0.01, (3,))  # tight: what is executed is not what is predicted
        model.reset(space)
        steps = [acting_inputs([0], t) for t in range(20)]
        actions = torch.stack([torch.from_numpy(model.get_next_action(step)) for step in steps])
        assert actions.abs().max() <= 0.01
        batch = {key: torch.cat([step[key] for step in steps], dim=1) for key in steps[0]}
        batch["rewards"][:, 0] = 0
        predicted = model(**batch, continuous_actions=actions[None]).pred_actions[0]
        torch.testing.assert_close(actions, predicted.clamp(-0.01, 0.01), atol=1e-6, rtol=0)

    def test_an_agent_that_acts_can_be_trained(self, make_model):
        model = make_model()
        model.reset(spaces.Box(-1, 1, (3,)))
        before = [model.get_next_action(acting_inputs([0], t)) for t in range(3)]
        train(model.train(), steps=1, **continuous_batch())
        model.eval().context.reset()
        after = [model.get_next_action(acting_inputs([0], t)) for t in range(3)]
        assert not np.allclose(before, after, atol=1e-6)

    def test_a_batch_is_so_many_single_agents(self, make_model):
        """Rows that reset on their own, past a full window, act as agents of their own."""
        model = make_model(max_position_embeddings=16)
        space = spaces.Box(-1, 1, (3,))
        resets = {0: (4,), 1: (4, 9), 2: ()}
        batch = model.reset(space, num_envs=3)
        batched = []
        for t in range(25):
            batch.reset([row for row, times in resets.items() if t in times])
            batched.append(model.get_next_action(acting_inputs([0, 1, 2], t), batch))
        for row, times in resets.items():
            single = model.reset(space)
            for t in range(25):
                if t in times:
                    single.reset()
                action = model.get_next_action(acting_inputs([row], t), single)
                np.testing.assert_allclose(action, batched[t][row], atol=1e-5)

    @pytest.mark.parametrize("feedback", ["executed", "none"])
    @pytest.mark.parametrize(("window", "remembered"), [(1, 0.5), (2, 0.5), (5, 0.5), (5, 0.0), (5, 0.8), (5, 1.0)])
    @torch.no_grad()
    def test_past_the_window_the_newest_are_remembered(self, make_model, window, remembered, feedback):
        model = make_model(action_feedback=feedback)
        context = model.reset(spaces.Box(-1, 1, (3,)))
        context.remembered = remembered
        steps = [acting_inputs([0], t) for t in range(12)]
        steps[0]["rewards"][:] = 0
        actions, first = [], 0
        for t, step in enumerate(steps):
            if t - first == window:
                first = t - min(int(remembered * window), window - 1)
            action = model.get_next_action(step, context, context_window=window)
            actions.append(torch.from_numpy(action)[None, None])
            seen = {key: torch.cat([step[key] for step in steps[first : t + 1]], dim=1) for key in step}
            expected = model(**seen, continuous_actions=torch.cat(actions[first:], dim=1)).pred_actions[0, -1]
            np.testing.assert_allclose(action, expected.clamp(-1, 1), atol=1e-6)

    def test_it_looks_back_as_far_as_in_its_training(self, make_model):
        """And further only if it is told to."""

        def actions(window=None, **config):
            model = make_model(**config)
            model.reset(spaces.Box(-1, 1, (3,)))
            return [model.get_next_action(acting_inputs([0], t), context_window=window) for t in range(12)]

        np.testing.assert_array_equal(actions(context_window=4), actions(4))
        np.testing.assert_array_equal(actions(12, context_window=4), actions())
        assert not np.allclose(actions(context_window=4), actions(), atol=1e-6)

    def test_discrete_actions(self, make_model):
        model = make_model()
        inputs = {"discrete_observations": torch.zeros(1, 1, 212, dtype=torch.long), "rewards": torch.zeros(1, 1)}
        model.reset(spaces.Discrete(3))
        likeliest = model.get_next_action(inputs, deterministic=True)
        assert type(likeliest) is int
        torch.manual_seed(0)
        sampled = set()
        for _ in range(50):
            model.reset(spaces.Discrete(3))
            sampled.add(model.get_next_action(inputs))
        assert sampled == {0, 1, 2}
        model.reset(spaces.Discrete(3))
        assert model.get_next_action(inputs, temperature=1e-4) == likeliest
        with pytest.raises(ValueError, match="temperature must be above 0"):
            model.get_next_action(inputs, temperature=0)

    def test_sampled_actions_of_a_row_come_from_its_seed(self, make_model):
        """Whatever else is in the batch."""
        model, space = make_model(), spaces.Discrete(18)
        inputs = {"discrete_observations": torch.zeros(8, 1, 212, dtype=torch.long), "rewards": torch.zeros(8, 1)}

        def play(seeds):
            context = model.reset(space, num_envs=len(seeds), seeds=seeds)
            batch = {key: values[: len(seeds)] for key, values in inputs.items()}
            return np.stack([model.get_next_action(batch, context) for _ in range(10)], axis=1)

        together = play(range(8))
        assert len({tuple(row) for row in together.tolist()}) == 8
        for row in (0, 5):
            assert play([row]).tolist() == [together[row].tolist()]
        context = model.reset(space, num_envs=8, seeds=range(8))
        context.reset([3], seeds=[5])
        again = np.stack([model.get_next_action(inputs, context) for _ in range(10)], axis=1)
        assert again[3].tolist() == together[5].tolist()
        assert again[4].tolist() == together[4].tolist()
        with pytest.raises(ValueError, match="expected a seed for each of 8 environments, got 2"):
            model.reset(space, num_envs=8, seeds=[0, 1])

    def test_actions_are_sampled_from_the_softmax(self, make_model):
        context = make_model().reset(spaces.Discrete(4), seeds=[0])
        logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
        counts = np.bincount(context.sample(logits.expand(1, 10_000, 4)).flatten(), minlength=4)
        np.testing.assert_allclose(counts / 10_000, logits.softmax(-1), atol=0.02)

    @pytest.mark.parametrize("implementation", ["eager", "flash_attention_2", "flex_attention"])
    def test_acting_is_the_same_with_every_attention(self, make_model, implementation):
        model = make_model()
        actions = []
        for name in ("sdpa", implementation):
            model.config._attn_implementation = name  # flash attention need not be installed: acting does without it
            model.reset(spaces.Box(-1, 1, (3,)))
            actions.append([model.get_next_action(acting_inputs([0], t)) for t in range(5)])
        np.testing.assert_allclose(actions[1], actions[0], atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, make_model, dtype):
        """Environments that began at different timesteps get the actions of float32, but for rounding."""
        model, actions = make_model(action_feedback="none", initializer_range=0.05), []
        for precision in (torch.float32, dtype):
            model.to(precision)
            context = model.reset(spaces.Box(-1, 1, (3,)), num_envs=2)
            for t in range(6):
                if t == 3:
                    context.reset([1])
                actions.append(model.get_next_action(acting_inputs([0, 1], t)))
        np.testing.assert_allclose(actions[6:], actions[:6], atol=0.02)

    @pytest.mark.parametrize("kept", [[2, 0], [False, False, True]])
    def test_some_rows_go_on_alone(self, make_model, kept):
        """As they would have beside the others, sampled actions too."""
        model, actions = make_model(max_position_embeddings=12), []
        for rows in (slice(None), kept):
            context = model.reset(spaces.Discrete(300), num_envs=3, seeds=range(3))
            for t in range(4):
                model.get_next_action(acting_inputs([0, 1, 2], t))
                if t == 1:
                    context.reset([1])
            if rows == kept:
                context.keep(kept)
            inputs = [{key: value[rows] for key, value in acting_inputs([0, 1, 2], t).items()} for t in range(4, 12)]
            actions.append(np.stack([model.get_next_action(step) for step in inputs], axis=1))
        np.testing.assert_array_equal(actions[1], actions[0][np.array(kept)])

    def test_actions_that_do_not_begin_at_zero(self, make_model):
        """Are the ones that the data hold: `start` is the first."""
        model = make_model()
        inputs = {"discrete_observations": torch.zeros(8, 1, 212, dtype=torch.long), "rewards": torch.zeros(8, 1)}
        model.reset(spaces.Discrete(3, start=5), num_envs=8)
        torch.manual_seed(0)
        chosen = np.concatenate([model.get_next_action(inputs) for _ in range(8)])
        assert set(chosen.tolist()) == {5, 6, 7}

    def test_errors(self, make_model):
        model, other = make_model(), make_model()
        inputs = acting_inputs([0], 0)
        with pytest.raises(ValueError, match=r"model\.reset"):
            model.get_next_action(inputs)
        with pytest.raises(
            ValueError, match="expected a Discrete action space within 0 to 299, or a Box of one dimension"
        ):
            model.reset(spaces.MultiDiscrete([2, 2]))
        for space in (spaces.Discrete(301), spaces.Discrete(3, start=-1), spaces.Box(-1, 1, (378,))):
            with pytest.raises(ValueError, match="expected a Discrete action space within 0 to 299, or a Box"):
                model.reset(space)
        context = model.reset(spaces.Box(-1, 1, (3,)), num_envs=2)
        with pytest.raises(ValueError, match="expected observations of 2 environments, got 1"):
            model.get_next_action(inputs)
        with pytest.raises(ValueError, match="another model"):
            other.get_next_action(inputs, context)
        model.reset(spaces.Box(-1, 1, (3,)))
        with pytest.raises(ValueError, match="context_window must be at least 1"):
            model.get_next_action(inputs, context_window=0)


def instruction(*tokens):
    return {"input_ids": torch.tensor([tokens])}


def demonstration(length=4):
    batch = continuous_batch(batch=1, length=length)
    return {**batch, "continuous_actions": batch["continuous_actions"].clamp(-1, 1)}


class TestPrompts:
    @pytest.mark.parametrize("kinds", ["instruction", "demonstration", "both"])
    @torch.no_grad()
    def test_a_prompt_stands_before_the_episode(self, make_model, kinds):
        """Acting behind a prompt is the forward pass over the prompt and the episode."""
        model = make_model()
        prompt, words, shown = {}, None, {}
        if kinds != "demonstration":
            prompt, words = instruction(5, 6, 7), torch.tensor([[5, 6, 7]])
        if kinds != "instruction":
            shown = demonstration()
            prompt = {**prompt, **shown}
        context = model.reset(spaces.Box(-1, 1, (3,)), num_envs=2, prompt=prompt)
        steps = [acting_inputs([0, 1], t) for t in range(6)]
        steps[0]["rewards"][:] = 0
        actions = torch.stack([torch.from_numpy(model.get_next_action(step, context)) for step in steps], dim=1)
        batch = {key: torch.cat([step[key] for step in steps], dim=1) for key in steps[0]}
        batch["continuous_actions"] = actions
        for row in range(2):
            inputs = {key: value[[row]] for key, value in batch.items()}
            if shown:
                inputs = {key: torch.cat([shown[key], value], dim=1) for key, value in inputs.items()}
            predicted = model(**inputs, prompt_input_ids=words).pred_actions[0, -6:]
            torch.testing.assert_close(actions[row], predicted.clamp(-1, 1), atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_a_prompt_is_never_forgotten(self, make_model):
        model = make_model(max_position_embeddings=16)
        prompt = instruction(5, 6, 7)
        context = model.reset(spaces.Box(-1, 1, (3,)), prompt=prompt)
        assert context.window == 6
        steps = [acting_inputs([0], t) for t in range(20)]
        steps[0]["rewards"][:] = 0
        actions, first = [], 0
        for t, step in enumerate(steps):
            if t - first == context.window:
                first = t - context.window // 2
            actions.append(torch.from_numpy(model.get_next_action(step, context))[None, None])
            seen = {key: torch.cat([step[key] for step in steps[first : t + 1]], dim=1) for key in step}
            outputs = model(
                **seen, continuous_actions=torch.cat(actions[first:], dim=1), prompt_input_ids=prompt["input_ids"]
            )
            np.testing.assert_allclose(actions[-1][0, 0], outputs.pred_actions[0, -1].clamp(-1, 1), atol=1e-5)

    @torch.no_grad()
    def test_prompts_of_different_lengths_in_a_batch(self, make_model):
        """A row's outputs do not depend on the padding that longer prompts beside it bring."""
        model, batch = make_model(), continuous_batch(batch=3)
        ids = torch.tensor([[1, 2, 3], [0, 0, 4], [0, 0, 0]])
        mask = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 0, 0]])
        together = model(**batch, prompt_input_ids=ids, prompt_attention_mask=mask).pred_actions
        for row, words in enumerate([ids[:1], ids[1:2, 2:], None]):
            alone = model(**{key: value[[row]] for key, value in batch.items()}, prompt_input_ids=words)
            torch.testing.assert_close(together[[row]], alone.pred_actions, atol=1e-5, rtol=1e-4)

    def test_a_prompt_tells_tasks_apart_that_look_alike(self, make_model):
        """Two tasks with the same observations and opposite actions."""
        observations = continuous_batch(batch=8)
        targets = torch.tensor([1.0, -1.0]).repeat(4)[:, None, None].expand(-1, 6, 3)
        words = torch.tensor([[5, 6], [7, 8]]).repeat(4, 1)
        # No earlier action to copy: each window is a single timestep.
        batch = {
            "continuous_observations": observations["continuous_observations"][:, :1],
            "rewards": torch.zeros(8, 1),
        }
        batch["continuous_observations"][1::2] = batch["continuous_observations"][::2]
        batch["continuous_actions"] = targets[:, :1]

        def trained_error(**prompt):
            model = make_model().train()
            return train(model, steps=60, loss="action_loss", **batch, **prompt)[-1], model

        prompted, model = trained_error(prompt_input_ids=words)
        unprompted, _ = trained_error()
        assert prompted < 0.05
        assert unprompted > 0.9  # the mean of both actions is the best guess
        inputs = {key: batch[key][:1] for key in ("continuous_observations", "rewards")}
        for prompt, sign in ((instruction(5, 6), 1), (instruction(7, 8), -1)):
            model.eval().reset(spaces.Box(-2, 2, (3,)), prompt=prompt)
            assert np.abs(model.get_next_action(inputs) - sign).max() < 0.5

    def test_errors(self, make_model):
        model, space = make_model(), spaces.Box(-1, 1, (3,))
        with pytest.raises(ValueError, match="a prompt of 63 tokens leaves no room for a timestep"):
            model.reset(space, prompt=instruction(*range(63)))
        with pytest.raises(ValueError, match=r"continuous_actions of shape \(1, L, 2\)"):
            model.reset(spaces.Box(-1, 1, (2,)), prompt=demonstration())
        with pytest.raises(ValueError, match=r"continuous_actions inside Box.*got \[2\.0\]"):
            model.reset(space, prompt={**demonstration(1), "continuous_actions": torch.tensor([[[0.0, 2.0, 0.0]]])})
        with pytest.raises(ValueError, match="discrete_actions of shape"):
            model.reset(spaces.Discrete(3), prompt=demonstration())
        with pytest.raises(ValueError, match="one prompt for all environments"):
            model.reset(space, num_envs=2, prompt={"input_ids": torch.ones(2, 3, dtype=torch.long)})
        with pytest.raises(ValueError, match="67 tokens does not fit the model's 64 positions"):
            model(**continuous_batch(length=32), prompt_input_ids=torch.ones(2, 3, dtype=torch.long))
