"""One rank of a recorded run: FlagEmbedding's own runner, with wrappers that write down what passes by."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser, TrainerCallback

import traces


class Recorder(TrainerCallback):
    """What a rank has seen so far."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.steps: list[dict[str, Any]] = []
        self.norm = math.nan
        self.optimizer_steps = 0

    def watch_data(self, dataset: Any) -> None:
        """Keeps what the data set returns, in the order in which it is fetched."""
        kind = type(dataset)
        fetch, self_ = kind.__getitem__, self

        def fetched(dataset: Any, index: int) -> Any:
            found = fetch(dataset, index)
            self_.samples.append(sample(index, found))
            return found

        kind.__getitem__ = fetched

    def watch_model(self, model: Any) -> None:
        """Keeps what goes into the model, and its loss."""
        forward, self_ = model.forward, self

        def watched(**inputs: Any) -> Any:
            step = f"step{len(self_.steps):03d}"
            for name, value in inputs.items():
                self_.keep(f"{step}.{name}", value)
            output = forward(**inputs)
            self_.steps.append(
                {"micro_step": len(self_.steps), "loss": output.loss.item()}
            )
            return output

        model.forward = watched

    def keep(self, name: str, value: Any) -> None:
        if isinstance(value, list) and value and not isinstance(value[0], int | float):
            for i, part in enumerate(value):
                self.keep(f"{name}.sub{i}", part)
        elif hasattr(value, "items"):
            for part, tensor in value.items():
                self.arrays[f"{name}.{part}"] = tensor.numpy().astype(np.int32)
        elif value is not None:
            self.arrays[name] = np.array(
                value, np.float64 if isinstance(value, list) else None
            )

    def watch_norm(self, accelerator: Any) -> None:
        """Keeps the norm of all gradients before they are cut down."""
        clip, self_ = accelerator.clip_grad_norm_, self

        def clipped(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            self_.norm = norm.item()
            return norm

        accelerator.clip_grad_norm_ = clipped

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """The last micro step of a group."""
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        self.steps[-1] |= {"optimizer_step": self.optimizer_steps, "lr": rate}
        # It is not taken where nothing is cut down.
        if not math.isnan(self.norm):
            self.steps[-1]["grad_norm"] = self.norm
        self.optimizer_steps += 1


def sample(index: int, found: Any) -> dict[str, Any]:
    """A line of the samples file."""
    if len(found) == 4:
        keys = ("queries", "passages", "teacher", "no_in_batch_neg_flag")
        return dict(zip(keys, found, strict=True))
    if len(found) == 3:
        return {"index": index} | dict(
            zip(("query", "passages", "teacher"), found, strict=True)
        )
    pairs, teacher = found
    return {
        "index": index,
        "pairs": [pair["input_ids"] for pair in pairs],
        "teacher": teacher,
    }


def runner_of(kind: str, arguments: list[str]) -> Any:
    """FlagEmbedding's runner, set up, and not yet run."""
    if kind == "embedder":
        from FlagEmbedding.abc.finetune.embedder import (
            AbsEmbedderDataArguments as Data,
        )
        from FlagEmbedding.abc.finetune.embedder import (
            AbsEmbedderModelArguments as Model,
        )
        from FlagEmbedding.abc.finetune.embedder import (
            AbsEmbedderTrainingArguments as Training,
        )
        from FlagEmbedding.finetune.embedder.encoder_only.base import (
            EncoderOnlyEmbedderRunner as Runner,
        )
    elif kind == "m3":
        from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments as Data
        from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
            EncoderOnlyEmbedderM3ModelArguments as Model,
        )
        from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
            EncoderOnlyEmbedderM3Runner as Runner,
        )
        from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
            EncoderOnlyEmbedderM3TrainingArguments as Training,
        )
    else:
        from FlagEmbedding.abc.finetune.reranker import (
            AbsRerankerDataArguments as Data,
        )
        from FlagEmbedding.abc.finetune.reranker import (
            AbsRerankerModelArguments as Model,
        )
        from FlagEmbedding.abc.finetune.reranker import (
            AbsRerankerTrainingArguments as Training,
        )
        from FlagEmbedding.finetune.reranker.encoder_only.base import (
            EncoderOnlyRerankerRunner as Runner,
        )
    model, data, training = HfArgumentParser(
        (Model, Data, Training)
    ).parse_args_into_dataclasses(arguments)
    return Runner(model_args=model, data_args=data, training_args=training)


TRAINING = (
    "seed", "data_seed", "max_steps", "learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "max_grad_norm", "per_device_train_batch_size",
    "gradient_accumulation_steps", "dataloader_drop_last", "dataloader_num_workers", "fp16", "bf16",
    "gradient_checkpointing",
)  # fmt: skip
EMBEDDER = (
    "negatives_cross_device", "temperature", "sentence_pooling_method", "normalize_embeddings", "sub_batch_size",
    "kd_loss_type", "use_mrl", "mrl_dims", "fix_position_embedding",
)  # fmt: skip
M3 = (
    "unified_finetuning",
    "use_self_distill",
    "self_distill_start_step",
    "fix_encoder",
)


def hyperparameters(
    name: str, scenario: Any, runner: Any, arguments: list[str]
) -> dict[str, Any]:
    """What the run was told. Places of this machine are left out."""
    training = runner.training_args

    def some(names: tuple[str, ...]) -> dict[str, Any]:
        there = (name for name in names if hasattr(training, name))
        return {name: plain(getattr(training, name)) for name in there}

    names = runner.trainer.get_decay_parameter_names(runner.model)
    parameters = dict(runner.model.named_parameters())
    hidden = {"--model_name_or_path", "--output_dir", "--cache_path"}
    told = [
        word
        for flag, word in zip(["", *arguments], arguments, strict=False)
        if not hidden & {flag, word}
    ]
    return {
        "scenario": name,
        "kind": scenario.kind,
        "world_size": scenario.ranks,
        "argv": told,
        "initial_model": scenario.model,
        "initial_model_sha256": traces.sha256(
            traces.TRACES / scenario.model / "model.safetensors"
        ),
        "data": {
            key: plain(value)
            for key, value in dataclasses.asdict(runner.data_args).items()
            if key != "cache_path"
        },
        "training": some(TRAINING),
        "embedder": some(EMBEDDER),
        "m3": some(M3) if scenario.kind == "m3" else {},
        "warmup_steps_resolved": training.get_warmup_steps(
            runner.trainer.state.max_steps
        ),
        "weight_decay_tensors": sorted(names),
        "frozen": sorted(name for name, p in parameters.items() if not p.requires_grad),
    }


def plain(value: Any) -> Any:
    return str(value.value) if hasattr(value, "value") else value


def finals(runner: Any, initial: dict[str, torch.Tensor]) -> dict[str, Any]:
    """How far each tensor went."""
    found = {}
    for name, tensor in runner.model.named_parameters():
        moved = (tensor.detach().double() - initial[name].double()).norm().item()
        found[name] = {
            "shape": list(tensor.shape),
            "l2": tensor.detach().double().norm().item(),
            "delta_l2": moved,
        }
    return found


def run(name: str, scenario: Any, rank: int, arguments: list[str]) -> None:
    """Trains, and writes this rank's part of the trace."""
    torch.set_num_threads(1)
    runner, recorder = runner_of(scenario.kind, arguments), Recorder()
    initial = {
        key: tensor.detach().clone() for key, tensor in runner.model.named_parameters()
    }
    recorder.watch_data(runner.train_dataset)
    recorder.watch_model(runner.model)
    recorder.watch_norm(runner.trainer.accelerator)
    runner.trainer.add_callback(recorder)
    runner.trainer.train()

    folder: Path = traces.TRACES / name
    np.savez_compressed(folder / f"batches_rank{rank}.npz", **recorder.arrays)
    losses = {"rank": rank, "world": scenario.ranks, "steps": recorder.steps}
    (folder / f"losses_rank{rank}.json").write_text(json.dumps(losses, indent=1) + "\n")
    lines = "".join(
        json.dumps(sample, ensure_ascii=False) + "\n" for sample in recorder.samples
    )
    (folder / f"samples_rank{rank}.jsonl").write_text(lines, "utf-8")
    if rank == 0:
        told = hyperparameters(name, scenario, runner, arguments)
        (folder / "hyperparameters.json").write_text(json.dumps(told, indent=1) + "\n")
        (folder / "final_weights.json").write_text(
            json.dumps(finals(runner, initial), indent=1) + "\n"
        )
    sys.stderr.flush()
