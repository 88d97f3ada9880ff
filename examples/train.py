"""Train a JAT on data sets built by `dataset_builder`, with transformers' Trainer.

    python -m dataset_builder build --tasks metaworld-reach mujoco-pendulum --episodes 100 --output data
    python examples/train.py --data data --output jat --steps 2000
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/train.py --data data --output jat
    torchrun --nproc_per_node 2 examples/train.py --data data --output jat  # on processors

All tasks of the data, or those of --tasks, are trained together; tasks with columns of the same shapes share batches.
Started again after an interruption, the training goes on from its last checkpoint with the batches that it would have
seen. The output folder then holds the model, its processor and their code. Besides the options below, those of
transformers' TrainingArguments can be given under their own names: --report_to tensorboard, --gradient_checkpointing,
--push_to_hub --hub_model_id USER/jat. Needs the extra `train`.
"""

import argparse
import fnmatch
import json
import math
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import torch
from accelerate.utils import gather_object
from datasets import (
    Dataset,
    IterableDataset,
    concatenate_datasets,
    get_dataset_config_names,
    load_dataset_builder,
)
from huggingface_hub.errors import StrictDataclassError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    HfArgumentParser,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy, get_last_checkpoint
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.logging import disable_progress_bar

from dataset_builder import get_task, register_from, select_tasks
from dataset_builder.cards import TRAINING
from dataset_builder.evaluation import AgentPolicy, evaluate
from dataset_builder.executors import keep_freed_memory
from dataset_builder.mixing import FixedWeights, StreamedWindows, TaskBatches, Window, WindowKey, Windows, loss_weight
from dataset_builder.publish import push_model
from dataset_builder.scores import expert_yardstick
from modeling_jat import JatConfig, JatModelForCausalLM
from processing_jat import JatProcessor

VOCABULARY_ROWS = 10_000  # of each data set, from which a new tokenizer learns
PROMPT_TOKENS = 32  # positions for an instruction before the window
SELECTION_EPISODES, SELECTION_ENVS = 10, 10  # of each task that is played at a checkpoint


class Collator:
    """Windows become a batch for the model, with the `tasks` and the `places` in the data that they are from."""

    def __init__(self, processor: JatProcessor) -> None:
        self.processor = processor

    def __call__(self, windows: list[Window]) -> dict[str, Any]:
        tasks, rows = [window.task for window in windows], [window.columns for window in windows]
        names = ", ".join(sorted({task.name for task in tasks}))
        if tasks[0].domain == "text":
            ends = [self.processor.tokenizer.eos_token if window.is_end else "" for window in windows]
            rows = [{**row, "text": row["text"] + end} for row, end in zip(rows, ends, strict=True)]
            batch = self.processor.pad(rows, truncation=True, task=names)
        else:
            batch = self.processor.pad(rows, prompts=[window.prompt for window in windows], task=names)
            weights = torch.tensor([loss_weight(task) for task in tasks])
            batch["loss_weight"] = weights[:, None].repeat(1, batch["attention_mask"].shape[1])
        return {**batch, "tasks": [task.name for task in tasks], "places": [window.place for window in windows]}


def use_every_parameter(model: torch.nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook with which every parameter has a gradient.

    FSDP sends the gradients around together, so all processes must have the same ones, though their batches are of
    different tasks, which use different encoders and decoders. The blocks, which every task uses, are asleep again.
    """
    awake = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]
    output["loss"] = output["loss"] + 0 * sum(parameter.flatten()[0] for parameter in awake)
    return output


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all other weights, at one learning rate.

    Args:
        model: a JAT.
        decayed: names of the weights that decay.
        lr: learning rate; Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
        weight_decay: of those.
    """

    def __init__(self, model: JatModelForCausalLM, decayed: Collection[str], lr: float, weight_decay: float) -> None:
        weights = dict(model.named_parameters())
        of_blocks = model.transformer.h.named_parameters(prefix="transformer.h")
        matrices = [weights.pop(name) for name, weight in of_blocks if weight.ndim == 2]
        groups = [
            {"params": [weight for name, weight in weights.items() if name in decayed], "weight_decay": weight_decay},
            {"params": [weight for name, weight in weights.items() if name not in decayed], "weight_decay": 0.0},
        ]
        self.muon = torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(groups, lr)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both work on the weights and the state that are kept here."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:
        self.muon.step()
        self.adamw.step()


class MixState(TrainerCallback, ExportableState):
    """Keeps the state of the batches' rule in the checkpoints."""

    def __init__(self, batches: TaskBatches) -> None:
        self.batches = batches

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.batches.state_dict()}


class MixTrainer(Trainer):
    """A Trainer whose batches come from a mix of tasks, and whose evaluations are played in environments.

    The logs have the mean loss of every task, "loss/metaworld-reach". An evaluation plays the tasks of `eval_dataset`;
    its "eval_score" is the mean over them of the return normalised by random and expert, cut to 0..1.

    Args:
        windows: what the batches hold.
        batches: which tasks they are of. A round of theirs lasts from one log to the next.
        muon: whether Muon trains the blocks.
        kwargs: as for [`~transformers.Trainer`].
    """

    def __init__(self, *args: Any, windows: Windows, batches: TaskBatches, muon: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(MixState(batches))
        self.windows, self.batches, self.muon = windows, batches, muon
        if muon and self.is_fsdp_enabled:
            raise ValueError("--muon needs whole matrices, but FSDP spreads them over processes: leave one of them out")
        if self.is_fsdp_enabled:
            self.model.register_forward_hook(use_every_parameter)
        self.tasks = list(windows.tasks)
        # Sum and number of the losses of every task since the last log.
        self.task_losses = torch.zeros(len(self.tasks), 2, dtype=torch.float64, device=self._statistics_device)
        # Losses and gradients of the step, with the places that they are from.
        self._noted: list[tuple[str, torch.Tensor, list[str]]] = []

    @property
    def _statistics_device(self) -> torch.device:
        # Apple's GPUs have no float64.
        return torch.device("cpu") if self.args.device.type == "mps" else self.args.device

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            state = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text())
            self.batches.load_state_dict(state["stateful_callbacks"][MixState.__name__]["attributes"])
        return super().train(resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.windows,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.muon and self.optimizer is None:
            model = model or self.model
            decayed = self.get_decay_parameter_names(model)
            self.optimizer = MuonAdamW(model, decayed, self.args.learning_rate, self.args.weight_decay)
        return super().create_optimizer(model)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.scaler is None:  # with float16 gradients overflow now and then, and it skips those steps
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            self._note("gradient", norm.full_tensor() if isinstance(norm, DTensor) else norm, inputs)
        if self.accelerator.sync_gradients:
            self._check_finite()
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        batch = {key: value for key, value in inputs.items() if key not in ("tasks", "places")}
        loss, output = super().compute_loss(model, batch, True, **kwargs)
        self._note("loss", loss.detach(), inputs)
        rows = torch.tensor([self.tasks.index(task) for task in inputs["tasks"]], device=self.task_losses.device)
        losses = output["row_losses"].double()
        self.task_losses.index_add_(0, rows, torch.stack([losses, torch.ones_like(losses)], dim=1))
        return (loss, output) if return_outputs else loss

    def _note(self, name: str, value: torch.Tensor, inputs: dict[str, Any]) -> None:
        places = [f"{task}, {place}" for task, place in zip(inputs["tasks"], inputs["places"], strict=True)]
        self._noted.append((name, value, places))

    def _check_finite(self) -> None:
        """Stop before weights, and checkpoints of them, are spoilt. Once a step, as looking makes a GPU wait."""
        noted, self._noted = self._noted, []
        finite = torch.stack([value.isfinite() for _, value, _ in noted]).tolist()
        if not all(finite):
            name, value, places = noted[finite.index(False)]
            rows = "".join(f"\n  row {row}: {place}" for row, place in enumerate(places))
            raise FloatingPointError(
                f"the {name} is {value.item()} in step {self.state.global_step + 1}, in this batch:{rows}\n"
                "If these data are sound, try a lower --learning-rate, or --no-bf16"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums, counts = self.accelerator.reduce(self.task_losses).unbind(1)
            drawn = [index for index, count in enumerate(counts.tolist()) if count]
            losses = {self.tasks[index]: (sums[index] / counts[index]).item() for index in drawn}
            self.task_losses.zero_()
            self.batches.end_round(losses)
            logs = {**logs, **{f"loss/{task}": loss for task, loss in losses.items()}}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        model = self._whole_model().eval()
        policy = AgentPolicy(model, self.processing_class, prompted=self.windows.instructed > 0)
        options = {"num_envs": SELECTION_ENVS, "purpose": "select", "progress": False}
        own_share = self.eval_dataset[self.args.process_index :: self.args.world_size]
        played = [evaluate(policy, task, episodes=SELECTION_EPISODES, **options) for task in own_share]
        model.context = None
        scores = {score.task: score.mean for score in gather_object(played)}
        normalized = [float(expert_yardstick(task).normalized(score)) for task, score in scores.items()]
        metrics = {f"{metric_key_prefix}/{task}": score for task, score in sorted(scores.items())}
        metrics[f"{metric_key_prefix}_score"] = sum(min(max(value, 0), 1) for value in normalized) / len(normalized)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _whole_model(self) -> JatModelForCausalLM:
        """The model, or where its weights are spread over processes a copy with all of them."""
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.model)
        whole = JatModelForCausalLM(self.accelerator.unwrap_model(self.model).config)
        weights = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        whole.load_state_dict(weights)
        return whole.to(self.args.device)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self.args.output_dir).free
            raise OSError(f"{folder} could not be written ({error}); {free / 1e6:,.0f} MB are free there") from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish a checkpoint as a model that loads, rather than only the files that Trainer knows of."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            try:
                push_model(checkpoint_folder, self.args.hub_model_id, private=self.args.hub_private_repo)
            except (OSError, httpx2.HTTPError) as error:
                print(f"{checkpoint_folder} could not be published ({error}); the training goes on", file=sys.stderr)


class Progress(ProgressCallback):
    """The bar, with the figures of all tasks together; those of each are in the reports and in the checkpoints."""

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        super().on_log(*args, logs={name: value for name, value in logs.items() if "/" not in name}, **kwargs)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint; of one that was being written when the training was killed, nothing is kept."""
    while folder.is_dir() and (checkpoint := get_last_checkpoint(folder)):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text())  # it is written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def check_goes_on(config: JatConfig, checkpoint: str) -> None:
    """Refuse a checkpoint of another model; one in shards, as FSDP may write it, holds no configuration to compare.

    Raises:
        ValueError: naming what differs.
    """
    if not (Path(checkpoint) / CONFIG_NAME).exists():
        return
    kept = JatConfig.from_pretrained(checkpoint)
    pairs = {name: (getattr(kept, name), getattr(config, name)) for name in JatConfig.__annotations__}
    if different := [f"{name} {old}, not {new}" for name, (old, new) in pairs.items() if old != new]:
        raise ValueError(
            f"{checkpoint} is of a model with {'; '.join(different)}: go on with its data and options, "
            "or begin anew in another --output"
        )


def has_fast_bf16() -> bool:
    """Accelerators are, and processors with instructions for it."""
    instructions = ("avx512_bf16", "amx_bf16")
    return torch.accelerator.is_available() or any(torch.cpu.get_capabilities().get(name) for name in instructions)


def load_tasks(folders: list[str], patterns: list[str] | None, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """The training split of every task that the patterns name; of one that several folders have, all they have."""
    try:
        available = {folder: set(get_dataset_config_names(folder)) for folder in folders}
    except FileNotFoundError as error:
        raise ValueError(f"--data: {error}") from error
    names = known = set().union(*available.values())
    if patterns:
        names = set()
        for pattern in patterns:
            matches = {task.name for task in select_tasks(pattern)} & known
            if not matches:
                raise ValueError(
                    f"{' and '.join(folders)} has no data of {pattern!r}; it has {', '.join(sorted(known))}"
                )
            names |= matches
    parts: dict[str, list[Dataset | IterableDataset]] = {name: [] for name in sorted(names)}
    for folder in folders:
        for name, dataset in load_folder(folder, available[folder] & names, streaming).items():
            parts[name].append(dataset)
    return {name: concatenate_datasets(datasets) for name, datasets in parts.items()}


def load_folder(data: str, names: set[str], streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """The training splits of a folder or repository by their names."""
    if not names:
        return {}
    # load_dataset would read the whole card for each of them, half a second where it has all tasks.
    first = load_dataset_builder(data, min(names))
    source = {key: getattr(first, key) for key in ("dataset_name", "hash", "base_path", "repo_id")}
    builders = {name: type(first)(config_name=name, **source) for name in names}
    if streaming:
        return {name: builder.as_streaming_dataset("train") for name, builder in builders.items()}
    for builder in builders.values():
        builder.download_and_prepare()
    return {name: builder.as_dataset("train") for name, builder in builders.items()}


def vocabulary_texts(datasets: dict[str, Dataset | IterableDataset]) -> list[str]:
    """What a new tokenizer learns from: the tasks' instructions, the missions of their episodes, and texts."""
    texts = [get_task(name).instruction for name in datasets]
    for dataset in datasets.values():
        sample = dataset.take(VOCABULARY_ROWS)
        if "text_observations" in dataset.column_names:
            texts += [row["text_observations"][0] for row in sample.select_columns("text_observations")]
        if "text" in dataset.column_names:
            texts += [row["text"] for row in sample.select_columns("text")]
    return texts


def make_rule(pairs: list[str], tasks: Iterable[str]) -> FixedWeights:
    """The published weights, and others for some tasks; of patterns that name the same task the last one holds.

    Raises:
        ValueError: if a pattern names none of the tasks.
    """
    weights = FixedWeights.published(tasks).weights()
    for pattern, weight in (pair.split("=") for pair in pairs):
        named = {task.name for task in select_tasks(pattern)} & set(weights)
        if not named:
            raise ValueError(f"--task-weights names {pattern}, which is not trained: {', '.join(weights)}")
        weights = {**weights, **dict.fromkeys(named, float(weight))}
    return FixedWeights(weights)


def select_played(patterns: list[str]) -> list[str]:
    """The tasks that are played at checkpoints.

    Raises:
        ValueError: if one of them has no scores of random and expert to measure it by.
    """
    names = [task.name for task in select_tasks(patterns)]
    if unknown := [name for name in names if expert_yardstick(name) is None]:
        raise ValueError(f"--evaluate-tasks: there are no scores of random and expert for {', '.join(unknown)}")
    return names


def make_agent(args: argparse.Namespace, datasets: dict[str, Any]) -> tuple[JatModelForCausalLM, JatProcessor]:
    """The model and its processor: new ones, or those to go on from.

    Raises:
        ValueError: if `--config` does not fit.
    """
    if args.init_from:
        model = load_model(args)
        processor = AutoProcessor.from_pretrained(args.init_from)
        positions = needed_positions(args, model.config)
        if positions > model.config.max_position_embeddings:
            model.resize_position_embeddings(positions)
            processor.tokenizer.model_max_length = positions
        return model, processor
    sizes = {
        "hidden_size": args.hidden_size,
        "num_layers": args.num_layers,
        "num_heads": args.num_heads,
        "context_window": args.window,
        "max_position_embeddings": args.window,  # timesteps; the configuration decides how many tokens they take
    }
    try:
        config = JatConfig(**sizes, **parse_config(args.config))
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(f"--config: {error}") from error
    config.max_position_embeddings = needed_positions(args, config)
    processor = JatProcessor.from_texts(
        vocabulary_texts(datasets),
        args.vocab_size,
        model_max_length=config.max_position_embeddings,
        image_size=config.image_size,
        image_seq_length=config.num_patches,
        tokens_per_timestep=config.tokens_per_timestep,
        max_continuous_size=config.max_continuous_size,
        max_discrete_size=config.max_discrete_value,
        mission_length=config.mission_length,
        rescale_observations=False,
    )
    tokenizer = processor.tokenizer
    config.vocab_size = len(tokenizer)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, getattr(tokenizer, token))
    return JatModelForCausalLM(config), processor


def load_model(args: argparse.Namespace) -> JatModelForCausalLM:
    """The model to go on from. Weights that `--config` gives another shape are new, which transformers says.

    Raises:
        ValueError: if `--config` does not fit.
    """
    try:
        config = AutoConfig.from_pretrained(args.init_from, context_window=args.window, **parse_config(args.config))
        config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"--config: {error}") from error
    options = {"config": config, "dtype": torch.float32}
    if not args.config:
        return AutoModel.from_pretrained(args.init_from, **options)
    model, _ = AutoModel.from_pretrained(
        args.init_from, ignore_mismatched_sizes=True, output_loading_info=True, **options
    )
    return model


def freeze_others(model: JatModelForCausalLM, patterns: list[str]) -> None:
    """Leave all weights as they are but those whose names the patterns match.

    Raises:
        ValueError: if a pattern matches none.
    """
    weights = dict(model.named_parameters())
    for pattern in patterns:
        if not fnmatch.filter(weights, pattern):
            parts = dict.fromkeys(name.split(".")[0] for name in weights)
            raise ValueError(f"--train-only: no weight is named {pattern!r}; they begin with {', '.join(parts)}")
    for name, weight in weights.items():
        weight.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def needed_positions(args: argparse.Namespace, config: JatConfig) -> int:
    """Tokens of a window and an instruction before it."""
    return args.window * config.tokens_per_timestep + (PROMPT_TOKENS if args.prompt_fraction else 0)


def parse_config(pairs: list[str]) -> dict[str, Any]:
    """Fields of JatConfig, their values as in JSON or plain words.

    Raises:
        ValueError: if there is no such field.
    """
    found = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name not in (known := JatConfig.__dataclass_fields__):
            hint = "".join(f"; did you mean {nearest}?" for nearest in get_close_matches(name, known, n=1))
            raise ValueError(f"--config: JatConfig has no field {name!r}{hint}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def rehearse(model: JatModelForCausalLM, windows: Windows, collator: Collator) -> None:
    """Pass a window of every task through processor and model, so that what does not fit is said before the training.

    Raises:
        ValueError: naming the task.
    """
    for name in windows.tasks:
        batch = collator([windows[WindowKey(name, 0, 0)]])
        del batch["tasks"], batch["places"]
        try:
            with torch.inference_mode():
                model(**batch)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name} does not fit the model: {error}") from error


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options below, and the others, which are TrainingArguments'."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, nargs="+", help="folders or Hub repositories of data sets")
    data.add_argument("--streaming", action="store_true", help="read them while training, instead of first of all")
    data.add_argument("--tasks", nargs="+", help="names, domains or globs; default: all of the data")
    data.add_argument(
        "--task-weights",
        nargs="*",
        default=[],
        metavar="TASKS=WEIGHT",
        help="how often tasks are drawn, by name, domain or glob; default: 1, text subsets 10",
    )
    data.add_argument("--window", type=int, default=256, help="timesteps that the model sees at once")
    data.add_argument("--image-window", type=int, default=32, help="the same in training on image observations")
    data.add_argument(
        "--prompt-fraction", type=float, default=0.0, help="of the windows, which come with their task's instruction"
    )
    data.add_argument(
        "--demonstration-fraction",
        type=float,
        default=0.0,
        help="of the windows, whose first half is from another episode",
    )
    data.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--output", type=Path, required=True, help="folder of the model and its checkpoints")
    model.add_argument("--init-from", help="a model to go on from; sizes that are not given in --config are its own")
    model.add_argument("--hidden-size", type=int, default=256)
    model.add_argument("--num-layers", type=int, default=8)
    model.add_argument("--num-heads", type=int, default=8)
    model.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="other fields of JatConfig, such as continuous_action_head=discretized",
    )
    model.add_argument("--vocab-size", type=int, default=512, help="tokens of a new vocabulary, at most")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train-only",
        nargs="+",
        metavar="WEIGHTS",
        help="globs of their names, such as 'image_encoder.*'; default: all",
    )
    training.add_argument("--steps", type=int, default=10_000)
    training.add_argument("--batch-size", type=int, default=16, help="windows in a batch of a process")
    training.add_argument("--gradient-accumulation", type=int, default=1, help="batches, of a task each, in a step")
    training.add_argument("--learning-rate", type=float, default=1e-3)
    training.add_argument(
        "--muon", action="store_true", help="train the blocks' matrices by Muon instead of AdamW; not with FSDP"
    )
    training.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="default: where the processor is fast at it"
    )
    training.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    training.add_argument(
        "--evaluate-tasks", nargs="+", default=[], help="play these at every checkpoint, and keep the best one"
    )
    training.add_argument("--seed", type=int, default=0)
    return parser.parse_known_args()


def training_arguments(args: argparse.Namespace, others: list[str]) -> TrainingArguments:
    """TrainingArguments of our options, and of their own ones, which come last."""
    on_accelerator = torch.accelerator.is_available()
    options = {
        "output_dir": args.output / "checkpoints",
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(0.03 * args.steps),
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": has_fast_bf16() if args.bf16 is None else args.bf16,
        "use_cpu": not on_accelerator,
        # Someone else looks after the data while an accelerator computes; a processor has enough to do.
        "dataloader_num_workers": 4 if on_accelerator else 0,
        "dataloader_pin_memory": on_accelerator,
        "ddp_find_unused_parameters": True,  # a batch needs the encoders and decoders of its own kind only
        # A checkpoint holds whole rounds of the sampling rule, which is told the losses when they are logged.
        "logging_steps": max(n for n in range(1, max(1, args.save_every // 10) + 1) if args.save_every % n == 0),
        "save_steps": args.save_every,
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # MixTrainer stops there
        "seed": args.seed,
    }
    if args.evaluate_tasks:
        options |= {"eval_strategy": "steps", "eval_steps": args.save_every, "load_best_model_at_end": True}
        options |= {"metric_for_best_model": "eval_score", "greater_is_better": True}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    if "--push_to_hub" in others and "--hub_model_id" not in others:
        raise ValueError("--push_to_hub needs --hub_model_id USER/NAME")
    [parsed] = HfArgumentParser(TrainingArguments, allow_abbrev=False).parse_args_into_dataclasses([*given, *others])
    return parsed


def make_trainer(args: argparse.Namespace, others: list[str]) -> MixTrainer:
    """All that the training needs, checked against each other.

    Raises:
        ValueError: if something does not fit.
    """
    for module in args.register:
        register_from(module)
    played = select_played(args.evaluate_tasks) if args.evaluate_tasks else None
    training = training_arguments(args, others)
    set_seed(args.seed)

    datasets = load_tasks(args.data, args.tasks, args.streaming)
    rule = make_rule(args.task_weights, datasets)
    options = {
        "window": args.window,
        "image_window": min(args.window, args.image_window),
        "instructed": args.prompt_fraction,
        "demonstrated": args.demonstration_fraction,
        "seed": args.seed,
    }
    if args.streaming:
        windows = StreamedWindows(datasets, num_streams=training.world_size, **options)
    else:
        windows = Windows(datasets, **options)
    model, processor = make_agent(args, datasets)
    if args.train_only:
        freeze_others(model, args.train_only)
    collator = Collator(processor)
    rehearse(model, windows, collator)
    batches_in_step = training.gradient_accumulation_steps * training.world_size
    batches = TaskBatches(
        rule,
        training.per_device_train_batch_size,
        args.seed,
        num_batches=training.max_steps * batches_in_step,
        round_length=int(training.logging_steps) * batches_in_step,
        shapes=windows.shapes,
    )
    trainer = MixTrainer(
        model,
        training,
        data_collator=collator,
        eval_dataset=played,
        processing_class=processor,
        windows=windows,
        batches=batches,
        muon=args.muon,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    return trainer


def write_training(trainer: MixTrainer, args: argparse.Namespace) -> None:
    """Write what the model's card says of its training."""
    before = args.init_from and cached_file(args.init_from, TRAINING, _raise_exceptions_for_missing_entries=False)
    record = {
        "command": "python " + shlex.join(["examples/train.py", *sys.argv[1:]]),
        "data": args.data,
        "tasks": trainer.tasks,
        "steps": trainer.state.global_step,
        "versions": {name: version(name) for name in ("jat", "transformers", "torch", "datasets")},
        "before": json.loads(Path(before).read_text(encoding="utf-8")) if before else None,
    }
    (args.output / TRAINING).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    args, others = parse_arguments()
    keep_freed_memory()
    disable_progress_bar()  # of every file that is written; that of the training stays
    try:
        trainer = make_trainer(args, others)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, httpx2.HTTPError) as error:
        print(f"error: {error}\nWhat has arrived is kept: give the same command again to go on", file=sys.stderr)
        return 1

    with trainer.args.main_process_first(local=False):
        checkpoint = last_whole_checkpoint(Path(trainer.args.output_dir))
    try:
        if checkpoint:
            check_goes_on(trainer.model.config, checkpoint)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if trainer.is_world_process_zero():
        for name, source in trainer.windows.sources.items():
            print(f"{name}: {source.described}")
        print(f"one model of {trainer.model.num_parameters():,} parameters for {len(trainer.tasks)} tasks")
        if checkpoint:
            print(f"going on from {checkpoint}")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (FloatingPointError, OSError, httpx2.HTTPError) as error:
        print(f"error: {error}\nThe checkpoints are whole: given again, the same command goes on", file=sys.stderr)
        return 1

    weights = trainer.accelerator.get_state_dict(trainer.model)
    # While Python waits here, the threads of a gloo group let go of its last tensors; at the end they might hang.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(args.output, state_dict=weights)
        trainer.processing_class.save_pretrained(args.output)
        trainer.state.save_to_json(str(args.output / "trainer_state.json"))
        write_training(trainer, args)
        print(f"the model is in {args.output}")
        if trainer.args.push_to_hub:
            print(push_model(args.output, trainer.args.hub_model_id, private=trainer.args.hub_private_repo))
    trainer.accelerator.end_training()  # else the threads of several processes may abort them as they exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
