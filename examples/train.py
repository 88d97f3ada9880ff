"""Train a JAT on data sets built by `dataset_builder`, with transformers' Trainer.

    python -m dataset_builder build --tasks metaworld-reach mujoco-pendulum --episodes 100 --output data
    python examples/train.py --data data --output jat --steps 2000

All tasks of the folder, or those of --tasks, are trained together, each batch on one of them. Started again after an
interruption, the training goes on from its last checkpoint with the batches that it would have seen. The output folder
then holds the model, its processor and their code. Needs the extra `train`.
"""

import argparse
import ctypes
import math
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, get_dataset_config_names, load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dataset_builder import get_task, register_from, select_tasks
from dataset_builder.mixing import TaskBatches, Windows
from modeling_jat import JatConfig, JatModelForCausalLM
from processing_jat import JatProcessor

PROMPT_TOKENS = 32  # positions for an instruction before the window


class MixTrainer(Trainer):
    """A Trainer whose batches come from a mix of tasks."""

    def __init__(self, *args: Any, windows: Windows, batches: TaskBatches, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.windows, self.batches = windows, batches

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.windows,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)


class Collator:
    """Windows of one task become a batch for the model."""

    def __init__(self, processor: JatProcessor) -> None:
        self.processor = processor

    def __call__(self, windows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        weights = [window.pop("loss_weight") for window in windows]
        prompts = [window.pop("prompt") for window in windows]
        [task] = {window.pop("task") for window in windows}
        batch = self.processor.pad(windows, prompts=prompts, task=task)
        batch["loss_weight"] = torch.tensor(weights)[:, None].expand(batch["attention_mask"].shape)
        return batch


def has_fast_bf16() -> bool:
    """Accelerators are, and processors with instructions for it."""
    capabilities = torch.cpu.get_capabilities()
    return torch.accelerator.is_available() or any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def keep_freed_memory() -> None:
    """Let the C library keep large blocks of memory that were freed, where it can be told to (glibc).

    Each step of training frees and takes the same ones; by default they go back to the system, and taking them again
    is up to a fifth of a step on a CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def load_tasks(data: str, patterns: list[str] | None) -> dict[str, Dataset]:
    """The training split of every task with episodes of a folder or repository that the patterns name."""
    available = [name for name in get_dataset_config_names(data) if get_task(name).domain != "text"]
    names = set(available)
    if patterns:
        names = set()
        for pattern in patterns:
            matches = {task.name for task in select_tasks(pattern)} & set(available)
            if not matches:
                raise ValueError(f"{data} has no data of {pattern!r}; it has {', '.join(available)}")
            names |= matches
    return {name: load_dataset(data, name, split="train") for name in sorted(names)}


def vocabulary_texts(datasets: dict[str, Dataset]) -> list[str]:
    """What a new tokenizer learns from: the tasks' instructions and the missions of their episodes."""
    texts = [get_task(name).instruction for name in datasets]
    for dataset in datasets.values():
        if "text_observations" in dataset.column_names:
            texts += [missions[0] for missions in dataset["text_observations"]]
    return texts


def parse_weights(pairs: list[str], tasks: dict[str, Dataset]) -> dict[str, float]:
    weights = {name: float(weight) for name, weight in (pair.split("=") for pair in pairs)}
    if unknown := sorted(set(weights) - set(tasks)):
        raise ValueError(f"--task-weights names {', '.join(unknown)}, which are not trained: {', '.join(tasks)}")
    return weights


def make_model(args: argparse.Namespace, processor: JatProcessor) -> JatModelForCausalLM:
    if args.init_from:
        return AutoModel.from_pretrained(args.init_from, dtype=torch.float32)
    tokenizer = processor.tokenizer
    return JatModelForCausalLM(
        JatConfig(
            hidden_size=args.hidden_size,
            num_layers=args.num_layers,
            num_heads=args.num_heads,
            max_position_embeddings=2 * args.window + (PROMPT_TOKENS if args.prompt_fraction else 0),
            continuous_action_head=args.continuous_action_head,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or Hub repository of data sets")
    parser.add_argument("--tasks", nargs="+", help="names, domains or globs; default: every task of the data")
    parser.add_argument(
        "--task-weights", nargs="*", default=[], metavar="TASK=WEIGHT", help="how often a task is drawn; default: 1"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model and its checkpoints")
    parser.add_argument("--init-from", help="a model to go on from; the sizes below are then its own")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--num-heads", type=int, default=8)
    parser.add_argument(
        "--continuous-action-head",
        choices=["regression", "discretized"],
        default="regression",
        help="continuous actions by mean squared error, or by cross-entropy of 1,024 bins",
    )
    parser.add_argument("--window", type=int, default=256, help="timesteps that the model sees at once")
    parser.add_argument("--image-window", type=int, default=32, help="the same in training on image observations")
    parser.add_argument(
        "--prompt-fraction", type=float, default=0.0, help="of the windows, which come with their task's instruction"
    )
    parser.add_argument("--vocab-size", type=int, default=512, help="tokens of a new vocabulary, at most")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--gradient-accumulation", type=int, default=1, help="batches, of a task each, in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="default: where the processor is fast at it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--register", action="append", default=[], metavar="MODULE", help="a module or file that registers tasks"
    )
    args = parser.parse_args()
    for module in args.register:
        register_from(module)

    set_seed(args.seed)
    keep_freed_memory()
    datasets = load_tasks(args.data, args.tasks)
    weights = parse_weights(args.task_weights, datasets)
    windows = Windows(datasets, window=args.window, image_window=min(args.window, args.image_window))
    if args.init_from:
        processor = AutoProcessor.from_pretrained(args.init_from)
    else:
        texts = vocabulary_texts(datasets)
        processor = JatProcessor.from_texts(
            texts, args.vocab_size, model_max_length=2 * args.window, rescale_observations=False
        )
    model = make_model(args, processor)
    for name, lengths in windows.lengths.items():
        print(f"{name}: {len(lengths):,} episodes, {lengths.sum():,} timesteps")
    print(f"one model of {model.num_parameters():,} parameters for {len(datasets)} tasks")

    checkpoints = args.output / "checkpoints"
    trainer = MixTrainer(
        model,
        TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.gradient_accumulation,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.03 * args.steps),
            weight_decay=0.01,
            max_grad_norm=1.0,
            bf16=has_fast_bf16() if args.bf16 is None else args.bf16,
            use_cpu=not torch.accelerator.is_available(),
            logging_steps=max(1, args.steps // 20),
            save_steps=args.save_every,
            save_total_limit=2,
            report_to="none",
            remove_unused_columns=False,
            seed=args.seed,
        ),
        data_collator=Collator(processor),
        processing_class=processor,
        windows=windows,
        batches=TaskBatches(
            windows,
            args.batch_size,
            args.seed,
            num_batches=args.steps * args.gradient_accumulation,
            weights=weights,
            prompt_fraction=args.prompt_fraction,
        ),
    )
    checkpoint = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    if checkpoint:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(f"the model is in {args.output}")


if __name__ == "__main__":
    main()
