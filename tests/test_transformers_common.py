"""transformers' own common tests for models: JAT passes what its trunk's model of origin, GPT-Neo, passes there.

They come with transformers' source distribution, which is downloaded from the package index once.
"""

import importlib
import subprocess
import sys
import tarfile
import types
import unittest

import pytest
import torch
import transformers
from conftest import make_config
from transformers import GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeling_jat import JatModelForCausalLM

pytestmark = pytest.mark.slow


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


def test_jat_passes_what_gpt_neo_passes(model_tester_mixin, monkeypatch):
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "jat", "JatModelForCausalLM")
    gpt_neo = outcomes(model_tester_mixin, GPTNeoForCausalLM, GPTNeoConfig, every_weight_is_trained=True)
    jat = outcomes(model_tester_mixin, JatModelForCausalLM, make_config, every_weight_is_trained=False)  # text alone
    passed = {name for name, fault in gpt_neo.items() if fault is None}
    assert len(passed) > 60
    passed.remove("test_model_is_small")  # below a million weights; the encoder of 84x84 images alone has 1.5
    faults = {name: jat[name] for name in sorted(passed) if jat[name] is not None}
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())
