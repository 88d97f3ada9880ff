"""What a transformers user expects of the model: generation, saving, the Hub, training, and its common tests."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import types
import unittest
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import KINDS, make_config, train
from gymnasium import spaces
from hub import running_hub
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeling_jat import JatModelForCausalLM

ROOT = Path(__file__).parent.parent


class TestGeneration:
    OPTIONS = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    @staticmethod
    def cache_options(cache):
        return {"use_cache": False} if cache is None else {"cache_implementation": cache, "disable_compile": True}

    @pytest.mark.parametrize("beams", [1, 3])
    def test_padding_on_the_left_changes_nothing(self, make_model, beams):
        model = make_model(window_size=4)
        rows = [[5, 6, 7, 8, 9, 10], [11, 12], [13]]
        alone = [
            model.generate(torch.tensor([row]), num_beams=beams, **self.OPTIONS)[0, len(row) :].tolist() for row in rows
        ]
        input_ids = torch.tensor([[0] * (6 - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
        together = model.generate(input_ids, attention_mask=mask, num_beams=beams, **self.OPTIONS)
        assert together[:, 6:].tolist() == alone

    @pytest.mark.parametrize("cache", ["dynamic", "static", None])
    def test_caches_change_nothing(self, make_model, cache):
        model = make_model(window_size=4)
        input_ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
        with torch.no_grad():
            expected = input_ids
            for _ in range(8):
                logits = model(input_ids=expected, return_loss=False).logits[:, -1]
                expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.ones_like(input_ids)
        generated = model.generate(input_ids, attention_mask=mask, **self.cache_options(cache), **self.OPTIONS)
        assert torch.equal(generated, expected)

    def test_the_cache_by_its_old_name(self, make_model):
        model = make_model()
        input_ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            expected = model(input_ids=input_ids, return_loss=False)
            first = model(input_ids=input_ids[:, :3], return_loss=False)
            assert first.past_key_values is first.cache
            output = model(input_ids=input_ids[:, 3:], past_key_values=first.past_key_values, return_loss=False)
        assert torch.allclose(output.logits[:, -1], expected.logits[:, -1], atol=1e-6)

    @pytest.mark.parametrize("cache", ["dynamic", "static", None])
    def test_image_and_text(self, make_model, cache):
        model = make_model(image_size=32, patch_size=16)
        pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        input_ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
        together = model.generate(
            input_ids, attention_mask=mask, pixel_values=pixel_values, **self.cache_options(cache), **self.OPTIONS
        )
        for row, start in ((0, 1), (1, 0)):
            words = input_ids[[row], start:]
            with torch.no_grad():
                for _ in range(8):
                    logits = model(input_ids=words, pixel_values=pixel_values[[row]], return_loss=False).logits[:, -1]
                    words = torch.cat([words, logits.argmax(-1, keepdim=True)], dim=1)
            assert together[row, start:].tolist() == words[0].tolist()

    def test_sampling(self, make_model):
        model = make_model()
        options = {**self.OPTIONS, "do_sample": True, "temperature": 5.0, "num_return_sequences": 4}
        torch.manual_seed(0)
        samples = model.generate(torch.tensor([[5, 6, 7]]), **options)
        assert samples.shape == (4, 11)
        assert len({tuple(sample.tolist()) for sample in samples}) > 1

    def test_a_caption_from_an_image_alone(self, make_model):
        model = make_model(image_size=32, patch_size=16)
        pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        captions = model.generate(pixel_values=pixel_values, **self.OPTIONS)
        with torch.no_grad():
            first = model(pixel_values=pixel_values).logits[:, -1].argmax(-1)
        assert torch.equal(captions[:, 0], first)
        assert captions.shape == (2, 8)

    def test_from_embeddings(self, make_model):
        model, input_ids = make_model(), torch.tensor([[5, 6, 7]])
        embeddings = model.get_input_embeddings()(input_ids)
        expected = model.generate(input_ids, **self.OPTIONS)[:, 3:]
        assert torch.equal(model.generate(inputs_embeds=embeddings, **self.OPTIONS), expected)

    def test_past_the_positions_is_refused(self, make_model):
        with pytest.raises(ValueError, match="a sequence of 65 tokens does not fit the model's 64 positions"):
            make_model().generate(torch.ones((1, 60), dtype=torch.long), **{**self.OPTIONS, "max_new_tokens": 10})


class TestSaving:
    def test_round_trip(self, make_model, tmp_path):
        model, batch = make_model(), KINDS["continuous"]()
        model.save_pretrained(tmp_path)
        for auto_class in (AutoModel, AutoModelForCausalLM):
            loaded = auto_class.from_pretrained(tmp_path)
            assert type(loaded) is JatModelForCausalLM
            assert torch.equal(loaded(**batch).pred_actions, model(**batch).pred_actions)

    def test_shards(self, make_model, tmp_path):
        model, batch = make_model(), KINDS["continuous"]()
        model.save_pretrained(tmp_path, max_shard_size="2MB")
        assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
        loaded = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(loaded(**batch).pred_actions, model(**batch).pred_actions)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", KINDS)
    @torch.no_grad()
    def test_half_precision(self, make_model, tmp_path, dtype, kind):
        model, batch = make_model(), KINDS[kind]()
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        outputs, expected = loaded(**batch), model(**batch)
        assert outputs.pred_actions.dtype == dtype
        assert outputs.loss.dtype == torch.float32
        torch.testing.assert_close(outputs.loss, expected.loss, atol=0, rtol=0.02)

    @torch.no_grad()
    def test_device_map(self, make_model, tmp_path):
        """Blocks that wait on the disk until they are needed give the same outputs."""
        model, batch = make_model(), KINDS["discrete"]()
        model.save_pretrained(tmp_path / "model")
        device_map = {name: "cpu" for name, _ in model.named_children() if name != "transformer"}
        device_map |= {f"transformer.{name}": "cpu" for name in ("wte", "wpe", "drop", "ln_f", "h.0")}
        loaded = AutoModel.from_pretrained(
            tmp_path / "model", device_map={**device_map, "transformer.h.1": "disk"}, offload_folder=tmp_path / "disk"
        )
        assert loaded.transformer.h[1].ln_1.weight.device.type == "meta"
        torch.testing.assert_close(loaded(**batch).pred_actions, model(**batch).pred_actions)

    def test_tied_weights(self, make_model, tmp_path):
        model = make_model(tie_word_embeddings=True)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert loaded.single_discrete_decoder.weight is loaded.transformer.wte.weight
        assert make_model().single_discrete_decoder.weight is not make_model().transformer.wte.weight

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("continuous_encoder.bias"), "weights missing continuous_encoder.bias"),
            (lambda state: state.update(extra=torch.ones(1)), "weights unexpected extra"),
        ],
    )
    def test_checkpoints_of_something_else_are_refused(self, make_model, tmp_path, change, message):
        model = make_model()
        state = model.state_dict()
        change(state)
        model.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(tmp_path)
        loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(loaded, JatModelForCausalLM)
        assert info["missing_keys"] | info["unexpected_keys"]

    def test_sizes_of_something_else_are_refused(self, make_model, tmp_path):
        make_model().save_pretrained(tmp_path)
        with pytest.raises(RuntimeError):
            AutoModel.from_pretrained(tmp_path, hidden_size=128)


class TestHub:
    ACTING = """
        import sys
        sys.modules.update(dict.fromkeys(["modeling_jat", "processing_jat", "dataset_builder"]))
        import numpy as np
        from gymnasium import spaces
        from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
        for auto_class in (AutoModel, AutoModelForCausalLM):
            model = auto_class.from_pretrained({source!r}, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
        model.reset(spaces.Box(-1, 1, (3,)))
        observation = np.linspace(-1, 1, 5, dtype=np.float32)
        print(model.get_next_action(processor({{"continuous_observation": observation}})).tolist())
    """
    PUSHING = """
        import modeling_jat, processing_jat
        modeling_jat.JatModelForCausalLM.from_pretrained({source!r}).push_to_hub("jat-project/jat")
        processing_jat.JatProcessor.from_pretrained({source!r}).push_to_hub("jat-project/jat")
    """

    @pytest.fixture
    def saved(self, make_model, processor, tmp_path):
        """A folder with a model and its processor, and its first action."""
        model, folder = make_model(), tmp_path / "saved"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model.reset(spaces.Box(-1, 1, (3,)))
        observation = {"continuous_observation": np.linspace(-1, 1, 5, dtype=np.float32)}
        return str(folder), model.get_next_action(processor(observation))

    @staticmethod
    def run(script, source, cwd, **environment):
        command = [sys.executable, "-c", textwrap.dedent(script).format(source=source)]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_a_saved_folder_needs_no_package(self, saved, tmp_path):
        """It acts the same in a process that cannot import the packages."""
        folder, expected = saved
        output = self.run(self.ACTING, folder, tmp_path)
        np.testing.assert_allclose(json.loads(output.splitlines()[-1]), expected, atol=1e-6)

    def test_pushed_to_the_hub(self, saved, tmp_path):
        """What one process pushes, another one that cannot import the packages loads and lets act."""
        folder, expected = saved
        with running_hub() as hub:
            self.run(self.PUSHING, folder, ROOT, **hub.environment(tmp_path / "pusher"))
            assert {"model.safetensors", "modeling_jat.py", "processing_jat.py", "configuration_jat.py"} <= set(
                hub.files("models", "jat-project/jat")
            )
            output = self.run(self.ACTING, "jat-project/jat", tmp_path, **hub.environment(tmp_path / "user"))
        np.testing.assert_allclose(json.loads(output.splitlines()[-1]), expected, atol=1e-6)


class TestTraining:
    def test_labels(self, make_model):
        """Tokens of label -100 are not learnt; by default all are."""
        model, input_ids = make_model(), torch.tensor([[5, 6, 7, 8]])
        logits = model(input_ids=input_ids).logits
        for labels in ([5, 6, 7, 8], [-100, -100, 7, 8], [-100, -100, -100, 9]):
            loss = model(input_ids=input_ids, labels=torch.tensor([labels])).loss
            expected = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(labels[1:]))
            torch.testing.assert_close(loss, expected)
        assert model(input_ids=input_ids, labels=torch.full((1, 4), -100)).loss == 0
        assert model(input_ids=input_ids, return_loss=False).loss is None

    @pytest.mark.parametrize("first_token_loss", [True, False])
    def test_the_first_token_behind_an_image(self, make_model, first_token_loss):
        """Is predicted from the image; as published it is not learnt."""
        model = make_model(image_size=32, patch_size=16, first_token_loss=first_token_loss)
        input_ids = torch.tensor([[5, 6, 7]])
        outputs = model(input_ids=input_ids, pixel_values=torch.ones(1, 3, 32, 32))
        begin = 0 if first_token_loss else 1
        predicted = outputs.logits[0, 3 + begin : -1]  # behind 4 patches
        torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(predicted, input_ids[0, begin:]))

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradient_checkpointing_changes_no_gradient(self, make_model, kind):
        gradients = []
        for checkpointing in (False, True):
            model = make_model().train()
            if checkpointing:
                model.activation_checkpointing_enable()
            model(**KINDS[kind]()).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient)

    @pytest.mark.parametrize("kind", KINDS)
    def test_hidden_states_and_attentions(self, make_model, kind):
        model, batch = make_model(), KINDS[kind]()
        model.set_attn_implementation("eager")
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        tokens = 2 * batch["rewards"].shape[1]
        assert [state.shape for state in outputs.hidden_states] == [(2, tokens, 64)] * 3
        assert [weights.shape for weights in outputs.attentions] == [(2, 2, tokens, tokens)] * 2
        for weights in outputs.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, tokens))
            assert weights.triu(1).abs().max() == 0
        as_tuple = model(**batch, return_dict=False)
        torch.testing.assert_close(as_tuple[0], outputs.loss)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_trunk_compiles_in_one_graph(self, make_model, kind):
        torch.compiler.reset()
        model, batch = make_model(window_size=4), KINDS[kind]()
        batch["attention_mask"] = torch.ones_like(batch["rewards"]).long()
        batch["attention_mask"][1, 2:] = 0
        expected = model(**batch)
        model.transformer.compile(fullgraph=True, backend="aot_eager")
        compiled = model(**batch)
        torch.testing.assert_close(compiled.loss, expected.loss)
        compiled.loss.backward()
        assert model.transformer.h[0].ln_1.weight.grad is not None

    def test_more_tokens(self, make_model):
        model = make_model()
        logits = model(input_ids=torch.tensor([[5, 6]])).logits
        model.resize_token_embeddings(310)
        assert model.config.vocab_size == 310
        resized = model(input_ids=torch.tensor([[5, 6]])).logits
        assert resized.shape == (1, 2, 310)
        torch.testing.assert_close(resized[..., :300], logits)
        model(input_ids=torch.tensor([[309]]))
        with pytest.raises(ValueError, match="310 tokens"):
            model(input_ids=torch.tensor([[310]]))

    def test_more_positions(self, make_model, tmp_path):
        model = make_model()
        before = model.config.max_position_embeddings
        tokens = torch.arange(before + 4)[None] % 50
        logits = model(input_ids=tokens[:, :before]).logits
        model.resize_position_embeddings(before + 4)
        assert model.config.max_position_embeddings == model.get_position_embeddings().num_embeddings == before + 4
        torch.testing.assert_close(model(input_ids=tokens).logits[:, :before], logits)
        model.save_pretrained(tmp_path)
        reloaded = JatModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(reloaded(input_ids=tokens).logits[:, :before], logits)
        model.resize_position_embeddings(4)
        torch.testing.assert_close(model(input_ids=tokens[:, :4]).logits, logits[:, :4])
        with pytest.raises(ValueError, match="4 positions"):
            model(input_ids=tokens[:, :5])

    @pytest.mark.parametrize("kind", KINDS)
    def test_lora(self, make_model, tmp_path, kind):
        """Adapters of the trunk learn a kind of task alone, are saved alone and are merged."""
        batch = KINDS[kind]()
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "c_fc", "c_proj"])
        model = get_peft_model(make_model(), config).train()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses = train(model, steps=10, learning_rate=1e-2, **batch)
        assert losses[-1] < losses[0]
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed
        assert all("lora_" in name for name in changed)
        expected = model.eval()(**batch).pred_actions
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(make_model(), tmp_path)
        torch.testing.assert_close(loaded(**batch).pred_actions, expected)
        merged = loaded.merge_and_unload()
        assert type(merged) is JatModelForCausalLM
        torch.testing.assert_close(merged(**batch).pred_actions, expected, atol=1e-5, rtol=1e-4)


# transformers' own common tests for models. They come with its source distribution, which is downloaded from the index
# once. The yardstick is GPT-Neo, where JAT's trunk comes from.


@pytest.fixture(scope="module")
def model_tester_mixin(request):
    """`ModelTesterMixin` of the installed version of transformers."""
    folder = request.config.cache.mkdir(f"transformers-{transformers.__version__}")
    if not any(folder.iterdir()):
        requirement = f"transformers=={transformers.__version__}"
        command = ["download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", folder, requirement]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    [archive] = folder.glob("*.tar.gz")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests"
    if not tests.exists():
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    for marker in (
        "accelerate_tests",
        "flash_attn_test",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "torch_compile_test",
    ):
        request.config.addinivalue_line("markers", f"{marker}: transformers' own")
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(tests)]
    sys.modules["transformers_tests"] = package
    # The distribution leaves these two out, whose tests are not among the common ones.
    for module, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        sys.modules[f"transformers_tests.{module}"] = types.SimpleNamespace(**{mixin: type(mixin, (), {})})
    return importlib.import_module("transformers_tests.test_modeling_common").ModelTesterMixin


class ModelTester:
    """What the mixin asks a model for: a small configuration and text."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 64, 2, 4, 99
    encoder_seq_length = key_length = seq_length

    def __init__(self, parent, make_config):
        self.parent, self.make_config = parent, make_config

    def get_config(self):
        return self.make_config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            attention_types=[[["global", "local"], 1]],
            intermediate_size=37,
            max_position_embeddings=512,
            window_size=7,
            bos_token_id=98,
            eos_token_id=98,
            pad_token_id=98,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = torch.randint(0, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def outcomes(mixin, model_class, make_config, every_weight_is_trained):
    """Run the common tests on a model: {name of the test: None if passed, "skipped", or the traceback}."""

    class CommonTest(mixin, unittest.TestCase):
        all_model_classes = (model_class,)
        test_all_params_have_gradient = every_weight_is_trained
        test_missing_keys = False  # as for GPT-Neo in transformers

        def setUp(self):
            self.model_tester = ModelTester(self, make_config)

    found = {}
    for test in unittest.defaultTestLoader.loadTestsFromTestCase(CommonTest):
        result = unittest.TestResult()
        test.run(result)
        faults = [text for _, text in (*result.errors, *result.failures)]
        found[test._testMethodName] = faults[0] if faults else "skipped" if result.skipped else None
    return found


@pytest.mark.slow
def test_jat_passes_what_gpt_neo_passes(model_tester_mixin, monkeypatch):
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "jat", "JatModelForCausalLM")
    gpt_neo = outcomes(model_tester_mixin, GPTNeoForCausalLM, GPTNeoConfig, every_weight_is_trained=True)
    small = partial(make_config, image_encoder_width=8, observation_loss_coef=0)  # less than a million weights
    jat = outcomes(model_tester_mixin, JatModelForCausalLM, small, every_weight_is_trained=False)  # text alone
    passed = {name for name, fault in gpt_neo.items() if fault is None}
    assert len(passed) > 60
    faults = {name: jat[name] for name in sorted(passed) if jat[name] is not None}
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())
