"""examples/train.py: the mix, several processes, evaluations, interruptions, and what it refuses."""

import copy
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import TASKS, Hardest, continuous_batch, make_config, wait_until
from datasets import Dataset
from hub import running_hub
from PIL import Image
from safetensors.torch import load_file
from train import (
    Collator,
    MixTrainer,
    MuonAdamW,
    check_goes_on,
    last_whole_checkpoint,
    load_tasks,
    main,
    make_rule,
    rehearse,
    use_every_parameter,
)
from transformers import AutoModel, AutoProcessor, TrainingArguments

from dataset_builder import get_task, task_features
from dataset_builder.builder import build
from dataset_builder.mixing import FixedWeights, TaskBatches, Window, Windows
from modeling_jat import JatModelForCausalLM, pretrained

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "examples/train.py")
SIZES = """
    --hidden-size 64 --num-layers 2 --num-heads 2 --config discrete_embedding_size=8 image_size=112
    --window 16 --image-window 2 --batch-size 2 --no-bf16
""".split()


def command(data, output, *options, steps=12, save_every=6):
    steps = ["--steps", steps, "--save-every", save_every]
    return [str(part) for part in (SCRIPT, "--data", data, "--output", output, *SIZES, *steps, *options)]


def run(*arguments, timeout=600, **kwargs):
    """Run Python to its end; what takes longer is aborted, and says where each of its processes stood."""
    kwargs["env"] = {**kwargs.get("env", os.environ), "PYTHONFAULTHANDLER": "1"}
    with start(arguments, stdout=subprocess.PIPE, **kwargs) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.send_signal(signal.SIGABRT)
            output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def assert_equal_weights(folder, other):
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert all((weights[name] - others[name]).abs().max() < 1e-5 for name in weights)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """For the processes that are started here: the number of threads decides how sums are rounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def trained(data_folder, tmp_path_factory):
    """The model after a training of two batches a step."""
    folder = tmp_path_factory.mktemp("train") / "jat"
    output = run(*command(data_folder, folder, "--gradient-accumulation", "2", "--demonstration-fraction", "0.5"))
    assert "metaworld-reach: 11 episodes, 5,500 timesteps" in output
    assert re.search(r"one model of [\d,]+ parameters for 4 tasks", output)
    return folder


def test_a_model_is_made_as_configured(trained):
    model, processor = AutoModel.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    assert model.config.discrete_embedding_size == model.multi_discrete_encoder[1].out_features == 8
    assert model.config.context_window == 16
    images = processor(images=[Image.new("RGB", (200, 100))], return_tensors="pt")["pixel_values"]
    assert model.vit_encoder(images).shape == (1, processor.image_seq_length, 64)


def test_losses_of_every_task_are_logged(trained):
    losses = {name for entry in history(trained) for name in entry if name.startswith("loss/")}
    assert losses == {f"loss/{task}" for task in TASKS}
    for entry in history(trained):
        if "loss" in entry:
            own = [value for name, value in entry.items() if name.startswith("loss/")]
            assert min(own) - 1e-6 <= entry["loss"] <= max(own) + 1e-6


def test_two_processes_train_like_one_with_the_same_batches(data_folder, trained, tmp_path):
    arguments = command(data_folder, tmp_path / "jat", "--demonstration-fraction", "0.5")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(*torchrun, *arguments)
    for one, two in zip(history(trained), history(tmp_path / "jat"), strict=True):
        names = [name for name in one if name.startswith("loss") or name == "grad_norm"]
        assert names == [name for name in two if name.startswith("loss") or name == "grad_norm"]
        np.testing.assert_allclose([one[name] for name in names], [two[name] for name in names], rtol=1e-4)
    assert_equal_weights(trained, tmp_path / "jat")


def test_processes_that_share_weights_may_train_on_different_tasks(tmp_path):
    """FSDP with a batch of continuous observations in one process and a batch of discrete ones in the other."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "examples"), str(ROOT)])
    output = run(*arguments, env={**os.environ, "PYTHONPATH": paths}, timeout=120)
    assert "largest difference" in output
    assert float(output.split()[-1]) < 1e-5


SHARDED = """
import gc

import torch
import torch.distributed as dist
from conftest import continuous_batch, discrete_batch, make_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from train import use_every_parameter

from modeling_jat import JatModelForCausalLM

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
batches = [continuous_batch(), discrete_batch()]
models = []
for sharded in (False, True):
    torch.manual_seed(0)
    model = JatModelForCausalLM(make_config())
    if sharded:
        model.register_forward_hook(use_every_parameter)
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(**batches[dist.get_rank()]).loss.backward()
    else:
        (sum(model(**batch).loss for batch in batches) / 2).backward()
    models.append(dict(model.named_parameters()))
differences = []
for name, parameter in models[0].items():
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    differences.append((models[1][name].grad.full_tensor() - gradient).abs().max().item())
if dist.get_rank() == 0:
    print("largest difference", max(differences))
dist.barrier()
# What FSDP made must go before the processes part: else now and then one aborts as it exits.
del models, model, parameter, gradient
gc.collect()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_reads_the_configurations(name):
    config = load_config_from_file(str(ROOT / f"examples/accelerate/{name}.yaml"))
    assert config.mixed_precision == "bf16"
    if name == "fsdp":
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in JatModelForCausalLM._no_split_modules


def test_the_best_checkpoint_is_kept(data_folder, tmp_path):
    """By the tasks that are played, in the environments, at every checkpoint."""
    played = ["--evaluate-tasks", "mujoco-pendulum", "mujoco-reacher"]
    arguments = command(
        data_folder, tmp_path, *played, "--learning-rate", "0.01", "--tasks", "mujoco-pendulum", steps=18
    )
    output = run(*arguments, "--report_to", "tensorboard")
    assert "11 episodes" in output
    assert list((tmp_path / "checkpoints/runs").glob("*/events*"))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_score"] for entry in state["log_history"] if "eval_score" in entry}
    assert list(scores) == [6, 12, 18]
    assert scores[state["best_global_step"]] == max(scores.values())
    assert all(0 <= score <= 1 for score in scores.values())
    assert_equal_weights(tmp_path, tmp_path / f"checkpoints/checkpoint-{state['best_global_step']}")


def test_training_on_a_stream_from_the_hub(data_folder, tmp_path):
    """Without a copy on the disk; killed, it goes on as if nothing had been. The model goes there too."""
    with running_hub() as hub:
        hub.add("datasets", "jat/mix", visible_files(data_folder))
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE")
        tasks = ["--tasks", "mujoco-pendulum", "atari-pong"]
        arguments = command("jat/mix", tmp_path / "killed", "--streaming", *tasks)
        kill_after(6, tmp_path / "killed", arguments, env=environment)
        assert "going on from" in run(*arguments, env=environment)
        pushed = ["--push_to_hub", "--hub_model_id", "jat/small"]
        output = run(*command("jat/mix", tmp_path / "jat", "--streaming", *tasks, *pushed), env=environment)
        assert output.endswith(f"{hub.url}/jat/small\n")
        files = hub.files("models", "jat/small")
        commits = len(hub.repositories["models", "jat/small"].commits)
    assert_equal_weights(tmp_path / "killed", tmp_path / "jat")
    assert not list((tmp_path / "home").rglob("*.arrow"))
    assert commits >= 3  # two checkpoints, and the model
    assert files["model.safetensors"] == (tmp_path / "jat/model.safetensors").read_bytes()
    assert {"README.md", "modeling_jat.py", "processing_jat.py", "training.json"} <= set(files)
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth"))]


def test_a_download_that_is_cut_off_goes_on(data_folder, tmp_path):
    """What the client cannot mend is said; the same command then goes on."""
    with running_hub() as hub:
        hub.add("datasets", "jat/mix", visible_files(data_folder))
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        arguments = command("jat/mix", tmp_path / "jat", "--tasks", "mujoco-pendulum")
        hub.cuts = repeat(True)
        result = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "What has arrived is kept: give the same command again to go on" in result.stderr
        hub.cuts = chain([True, False, True], repeat(False))
        assert "the model is in" in run(*arguments, env=environment)


def visible_files(folder):
    """The contents of a folder's files by path."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".")}


def kill_after(step, folder, arguments, **kwargs):
    with start(arguments, **kwargs) as process:
        wait_until((folder / f"checkpoints/checkpoint-{step}/trainer_state.json").exists, process)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "model.safetensors").exists()


def start(arguments, stdout=subprocess.DEVNULL, **kwargs):
    return subprocess.Popen([sys.executable, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, **kwargs)


def test_a_killed_training_goes_on_to_the_same_weights(data_folder, trained, tmp_path):
    options = ["--gradient-accumulation", "2", "--demonstration-fraction", "0.5"]
    arguments = command(data_folder, tmp_path / "jat", *options)
    kill_after(6, tmp_path / "jat", arguments)
    # As if it had been killed while it wrote the next checkpoint.
    unfinished = tmp_path / "jat/checkpoints/checkpoint-12"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "trainer_state.json").unlink(missing_ok=True)
    assert "going on from" in run(*arguments)
    assert_equal_weights(tmp_path / "jat", trained)
    assert history(tmp_path / "jat")[:-1] == history(trained)[:-1]  # but for the times of the last one


def test_another_model_does_not_go_on_from_a_checkpoint(data_folder, trained, monkeypatch, capsys):
    other_window = ["--hidden-size", "32", "--window", "8"]
    monkeypatch.setattr(sys, "argv", command(data_folder, trained, *other_window))
    assert main() == 2
    assert "checkpoint-12 is of a model with max_position_embeddings 32, not 16; " in (error := capsys.readouterr().err)
    assert "context_window 16, not 8; hidden_size 64, not 32; intermediate_size 256, not 128: go on with its" in error


def test_a_checkpoint_in_shards_has_no_configuration_to_compare(trained, tmp_path):
    shutil.copytree(trained / "checkpoints/checkpoint-12", tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-12/config.json").unlink()
    check_goes_on(AutoModel.from_pretrained(trained).config, str(tmp_path / "checkpoint-12"))


def test_a_killed_training_by_muon_goes_on_to_the_same_weights(data_folder, tmp_path):
    whole, killed = (command(data_folder, tmp_path / name, "--muon") for name in ("whole", "killed"))
    run(*whole)
    kill_after(6, tmp_path / "killed", killed)
    run(*killed)
    assert_equal_weights(tmp_path / "killed", tmp_path / "whole")


def test_muon_and_adamw_train_every_weight_that_a_batch_uses():
    torch.manual_seed(0)
    model, batch = JatModelForCausalLM(make_config()), continuous_batch()
    optimizer = MuonAdamW(model, {"continuous_encoder.weight"}, lr=1e-3, weight_decay=0.01)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    losses = []
    for _ in range(40):
        loss = model(**batch).loss
        loss.backward()
        used = {name for name, weight in model.named_parameters() if weight.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert used == {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def test_a_part_of_a_trained_model_is_made_anew_and_trained_alone(data_folder, trained, tmp_path):
    width = ["--config", "image_encoder_width=16"]
    options = ["--init-from", trained, *width, "--train-only", "image_encoder.*", "--tasks", "atari-pong", "--muon"]
    run(*command(data_folder, tmp_path, *options, steps=2))
    assert AutoModel.from_pretrained(tmp_path).config.image_encoder_width == 16
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("image_encoder.")}


def test_a_full_disk_costs_the_checkpoint_that_is_being_written_only(data_folder, tmp_path):
    tasks = ["--tasks", "mujoco-pendulum"]
    arguments = command(data_folder, tmp_path / "jat", *tasks, steps=200, save_every=2)
    with start(arguments) as process:
        wait_until((tmp_path / "jat/checkpoints/checkpoint-2/trainer_state.json").exists, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    failed = re.search(r"checkpoint-(\d+) could not be written", errors)[1]
    assert "MB are free there" in errors
    assert "given again, the same command goes on" in errors
    assert not (tmp_path / f"jat/checkpoints/checkpoint-{failed}").exists()
    assert last_whole_checkpoint(tmp_path / "jat/checkpoints").endswith(f"checkpoint-{int(failed) - 2}")
    assert f"going on from {last_whole_checkpoint(tmp_path / 'jat/checkpoints')}" in run(*arguments)


def continuous(task="mujoco-pendulum", scale=1.0, episodes=4):
    rng = np.random.default_rng(0)
    sizes = {"mujoco-pendulum": (4, 1), "mujoco-swimmer": (8, 2)}[task]
    rows = [
        {
            "continuous_observations": rng.normal(size=(20, sizes[0])) * scale,
            "continuous_actions": rng.normal(size=(20, sizes[1])),
            "rewards": np.ones(20),
        }
        for _ in range(episodes)
    ]
    return Dataset.from_list(rows, features=task_features(get_task(task)))


def texts(with_images):
    task = "conceptual-captions" if with_images else "wikipedia"
    columns = {"text": [f"text number {number} " * number for number in range(1, 9)]}
    if with_images:
        columns["images"] = [Image.new("RGB", (40, 30), (number * 20, 0, 0)) for number in range(1, 9)]
    return Dataset.from_dict(columns, features=task_features(get_task(task)))


def make_trainer(folder, processor, datasets, rule=None, steps=8, **options):
    torch.manual_seed(0)
    windows = Windows(datasets, window=8, instructed=0.5)
    batches = TaskBatches(rule or FixedWeights.published(datasets), 2, num_batches=steps, round_length=2)
    defaults = {"max_steps": steps, "save_steps": 4, "logging_steps": 2, "remove_unused_columns": False}
    return MixTrainer(
        JatModelForCausalLM(make_config(max_position_embeddings=240)),
        TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **{**defaults, **options}),
        data_collator=Collator(processor),
        processing_class=processor,
        windows=windows,
        batches=batches,
    )


@pytest.fixture
def text_processor(processor):
    """Of a model with room for an image's 196 tokens and some text."""
    longer = copy.deepcopy(processor)
    longer.tokenizer.model_max_length = 230
    return longer


def test_texts_and_images_are_trained_beside_tasks(text_processor, tmp_path):
    datasets = {
        "wikipedia": texts(with_images=False),
        "conceptual-captions": texts(with_images=True),
        "mujoco-pendulum": continuous(),
    }
    rule = FixedWeights(dict.fromkeys(datasets, 1.0))
    trainer = make_trainer(tmp_path, text_processor, datasets, rule, steps=60, learning_rate=1e-3, save_steps=60)
    rehearse(trainer.model, trainer.windows, trainer.data_collator)
    trainer.train()
    assert any("loss/mujoco-pendulum" in entry for entry in trainer.state.log_history)
    for task in ("wikipedia", "conceptual-captions"):
        losses = [entry[f"loss/{task}"] for entry in trainer.state.log_history if f"loss/{task}" in entry]
        assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_a_model_learns_where_texts_end(text_processor):
    task = get_task("wikipedia")
    windows = [
        Window(task, "", {"text": text}, is_end=is_end) for text, is_end in [("go to", True), ("go to the", False)]
    ]
    batch = Collator(text_processor)(windows)
    whole, cut = (row[mask == 1] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True))
    end = text_processor.tokenizer.eos_token_id
    assert (whole[-1] == end, end in cut) == (True, False)


def test_a_rule_that_learns_is_part_of_the_checkpoints(processor, tmp_path):
    datasets = {task: continuous(task) for task in ("mujoco-pendulum", "mujoco-swimmer")}
    undisturbed = make_trainer(tmp_path / "undisturbed", processor, datasets, Hardest(datasets), steps=12)
    undisturbed.train()
    assert set(undisturbed.batches.rule.weights().values()) == {4.0, 1.0}
    resumed = make_trainer(tmp_path / "resumed", processor, datasets, Hardest(datasets), steps=12)
    checkpoint = str(tmp_path / "undisturbed/checkpoint-4")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.batches.state_dict() == undisturbed.batches.state_dict()
    for name, weight in undisturbed.model.state_dict().items():
        assert (resumed.model.state_dict()[name] - weight).abs().max() < 1e-6


def test_a_loss_that_is_not_finite_stops_the_training(processor, tmp_path):
    datasets = {"mujoco-pendulum": continuous(scale=1e30)}
    trainer = make_trainer(tmp_path, processor, datasets)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = r"the loss is (inf|nan) in step 1, in this batch:\n"
    place = r"mujoco-pendulum, timesteps \d+ to \d+ of episode \d\n"
    assert re.match(f"{message}  row 0: {place}  row 1: {place}", str(error.value))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_spoils_no_weights(processor, tmp_path):
    trainer = make_trainer(tmp_path, processor, {"mujoco-pendulum": continuous()})
    trainer.model.continuous_decoder.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="the gradient is nan in step 1, in this batch:\n  row 0: mujoco-pend"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("streaming", [False, True])
def test_what_several_folders_have_of_a_task_is_trained_together(data_folder, tmp_path, streaming):
    pendulum, reacher = TASKS[2], "mujoco-reacher"
    build([pendulum, reacher], tmp_path, episodes=3, seed=1, max_episode_steps=20, progress=False)
    found = load_tasks([str(data_folder), str(tmp_path)], ["mujoco"], streaming)
    lengths = {name: [len(row["rewards"]) for row in dataset] for name, dataset in found.items()}
    assert lengths == {pendulum: [50] * 11 + [20] * 3, reacher: [20] * 3}
    with pytest.raises(ValueError, match=rf"{tmp_path} has no data of 'babyai'; it has {pendulum}, {reacher}"):
        load_tasks([str(tmp_path)], ["babyai"], streaming)


def test_weights_by_pattern():
    rule = make_rule(["babyai=2", "babyai-go-to*=3"], ["babyai-go-to", "babyai-open", "mujoco-ant", "wikipedia"])
    assert rule.weights() == {"babyai-go-to": 3, "babyai-open": 2, "mujoco-ant": 1, "wikipedia": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "metaworld-push"], "has no data of 'metaworld-push'; it has atari-pong"),
        (["--task-weights", "metaworld-push=2"], "--task-weights names metaworld-push, which is not trained"),
        (["--task-weights", "metaword=2"], "no task matches 'metaword'"),
        (["--tasks", "metaword-reach"], "no task matches 'metaword-reach'"),
        (["--evaluate-tasks", "wikipedia"], "there are no scores of random and expert for wikipedia"),
        (["--prompt-fraction", "2"], "instructed must be a fraction from 0 to 1, got 2.0"),
        (["--learning-rat", "2"], "--learning-rat"),
        (["--config", "num_layer=2"], "--config: JatConfig has no field 'num_layer'; did you mean num_layers?"),
        (["--config", "image_size=100"], "image_size (100) must be divisible by patch_size (16)"),
        (["--config", "image_size=big"], "Field 'image_size' expected int"),
        (["--config", "num_layers=3"], "--config: "),
        (["--config", "max_position_embeddings=64"], "--config: "),
        (["--train-only", "encoder.*"], "--train-only: no weight is named 'encoder.*'; they begin with transformer, "),
        (["--init-from", str(pretrained("jat-mini")), "--config", "image_size=100"], "--config: "),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id USER/NAME"),
        (["--data", str(ROOT / ".ci")], "--data: "),
    ],
)
def test_what_cannot_be_trained_is_refused(data_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", command(data_folder, tmp_path / "jat", *arguments))
    assert main() == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "jat").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_continuous_size": 20}, "metaworld-reach does not fit the model"),
        ({"max_discrete_value": 100}, "babyai-go-to-red-ball-no-dists does not fit the model: .*100 values.* got 212"),
        ({"vocab_size": 2}, "does not fit the model: .* below the vocabulary's 2 tokens"),
    ],
)
def test_a_model_whose_sizes_do_not_fit_a_task_is_refused(load_task, processor, sizes, message):
    windows = Windows({task: load_task(task) for task in TASKS[:2]}, window=8)
    config = make_config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with pytest.raises(ValueError, match=message):
        rehearse(JatModelForCausalLM(config), windows, Collator(processor))


def test_a_forward_hook_gives_every_parameter_a_gradient(make_model):
    model = make_model()
    loss = model(**continuous_batch()).loss
    model.register_forward_hook(use_every_parameter)
    output = model(**continuous_batch())
    assert output.loss == loss
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
