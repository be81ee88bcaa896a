"""Records runs of FlagEmbedding for `beige-trainer replay`, in the format that the trainer's documentation describes.

usage: traces.py [NAME]...     the traces of ../golden/traces, all or by name; needs the flagembedding environment

FlagEmbedding runs as it is, on one thread a rank and without dropout; what is recorded passes by in wrappers around
its data set, its model, and the optimiser's step.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import places

TRACES = places.GOLDEN / "traces"
COMMON = {
    "seed": 42, "learning_rate": 1e-3, "warmup_steps": 2, "max_steps": 6, "max_grad_norm": 1.0,
    "per_device_train_batch_size": 2, "dataloader_drop_last": True, "logging_steps": 1, "save_strategy": "no",
    "report_to": "none", "use_cpu": True, "train_group_size": 3, "query_max_len": 16, "passage_max_len": 32,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One recorded run."""

    model: str
    settings: dict[str, Any]
    ranks: int = 1
    kind: str = "embedder"
    data: tuple[str, ...] = ("data/questions.jsonl",)


XLMR, BERT = "../checkpoints/xlmr-cls", "../checkpoints/bert-cls"
SCENARIOS = {
    "crossdev-kd": Scenario(
        XLMR,
        {
            "negatives_cross_device": True,
            "knowledge_distillation": True,
            "temperature": 0.05,
        },
        ranks=2,
    ),
    "crossdev-m3kd-mrl": Scenario(
        BERT,
        {
            "negatives_cross_device": True,
            "knowledge_distillation": True,
            "kd_loss_type": "m3_kd_loss",
            "use_mrl": True,
            "mrl_dims": [8, 48],
            "sentence_pooling_method": "last_token",
        },
        ranks=4,
    ),
    "mean-accumulation": Scenario(
        BERT,
        {
            "sentence_pooling_method": "mean",
            "gradient_accumulation_steps": 5,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "dataloader_drop_last": False,
            "max_steps": 4,
            "sub_batch_size": 2,
            "query_instruction_for_retrieval": "Ask: ",
            "passage_instruction_for_retrieval": "Say: ",
            "passage_instruction_format": "{}\n{}",
            "pad_to_multiple_of": 8,
            "shuffle_ratio": 0.5,
        },
    ),
    "by-file": Scenario(
        XLMR,
        {
            "same_dataset_within_batch": True,
            "small_threshold": 6,
            "fix_position_embedding": True,
            "temperature": 0.1,
        },
        ranks=2,
        data=("data/places", "data/kinds-no_in_batch_neg"),
    ),
    "unified-kd": Scenario(
        "models/xlmr-m3",
        {
            "unified_finetuning": True,
            "use_self_distill": True,
            "self_distill_start_step": 0,
            "knowledge_distillation": True,
            "negatives_cross_device": True,
        },
        ranks=2,
        kind="m3",
    ),
    "unified-own-group": Scenario(
        "models/xlmr-m3",
        {
            "unified_finetuning": True,
            "use_self_distill": True,
            "self_distill_start_step": 1,
            "fix_encoder": True,
            "same_dataset_within_batch": True,
            "per_device_train_batch_size": 4,
        },
        kind="m3",
        data=("data/kinds-no_in_batch_neg",),
    ),
    "reranker-kd": Scenario(
        "../checkpoints/xlmr-cross",
        {"knowledge_distillation": True, "weight_decay": 0.01},
        ranks=2,
        kind="reranker",
    ),
    "mrl-unnormalised": Scenario(
        BERT,
        {
            "negatives_cross_device": True,
            "use_mrl": True,
            "mrl_dims": [8, 500],
            "normalize_embeddings": False,
            "temperature": 1.0,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "polynomial",
        },
        ranks=3,
        data=("data/pairs",),
    ),
    "one-table": Scenario(
        XLMR,
        {
            "seed": 7,
            "data_seed": 11,
            "max_example_num_per_dataset": 6,
            "max_steps": -1,
            "num_train_epochs": 2,
            "dataloader_drop_last": False,
            "per_device_train_batch_size": 5,
            "train_group_size": 1,
            "warmup_steps": 0.2,
            "query_instruction_for_retrieval": "Ask: ",
            "query_instruction_format": "{1} ({0})",
            "lr_scheduler_type": "inverse_sqrt",
            "temperature": 0.1,
        },
        ranks=2,
        data=("data/asked",),
    ),
    "by-file-sizes": Scenario(
        XLMR,
        {
            "same_dataset_within_batch": True,
            "knowledge_distillation": True,
            "max_steps": 8,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "lr_scheduler_type": "cosine_with_restarts",
        },
        data=("data/sized",),
    ),
    "unified-three": Scenario(
        "models/xlmr-m3",
        {
            "unified_finetuning": True,
            "use_self_distill": True,
            "negatives_cross_device": True,
            "gradient_accumulation_steps": 2,
            "sentence_pooling_method": "mean",
            "lr_scheduler_type": "constant",
        },
        ranks=3,
        kind="m3",
    ),
    "reranker-short": Scenario(
        "../checkpoints/bert-cross",
        {
            "knowledge_distillation": True,
            "max_steps": -1,
            "num_train_epochs": 1,
            "dataloader_drop_last": False,
            "per_device_train_batch_size": 4,
            "train_group_size": 4,
            "query_instruction_for_rerank": "Ask: ",
            "passage_instruction_for_rerank": "",
        },
        kind="reranker",
        data=("data/pairs",),
    ),
}


def arguments(scenario: Scenario, model: Path, scratch: Path) -> list[str]:
    """The command line of a run, whose working directory is the traces'."""
    settings = (
        COMMON
        | scenario.settings
        | {"model_name_or_path": model, "output_dir": scratch / "out"}
    )
    line = ["--train_data", *scenario.data]
    for name, value in (settings | {"cache_path": scratch / "cache"}).items():
        line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line + (["--ddp_backend", "gloo"] if scenario.ranks > 1 else [])


def without_dropout(source: Path, copy: Path) -> Path:
    """A copy of a checkpoint that trains without dropout, with bge-m3's heads as FlagEmbedding reads them."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(source, copy)
    config = json.loads((copy / "config.json").read_text())
    off = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
    }
    (copy / "config.json").write_text(json.dumps(config | off))
    if (copy / "m3_heads.safetensors").exists():
        heads = load_file(copy / "m3_heads.safetensors")
        for head in ("colbert_linear", "sparse_linear"):
            part = {name: heads[f"{head}.{name}"] for name in ("weight", "bias")}
            torch.save(part, copy / f"{head}.pt")
    return copy


def make_unified(folder: Path) -> None:
    """The checkpoint of `xlmr-cls` with two heads, always the same."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(TRACES / XLMR / name, folder / name)
    torch.manual_seed(7)
    sizes = {
        "colbert_linear.weight": (32, 32),
        "colbert_linear.bias": (32,),
        "sparse_linear.weight": (1, 32),
    }
    heads = {name: torch.randn(size) * 0.2 for name, size in sizes.items()}
    save_file(
        heads | {"sparse_linear.bias": torch.tensor([0.3])},
        folder / "m3_heads.safetensors",
    )


def record(name: str) -> None:
    """Runs one scenario, a process per rank, and keeps its trace."""
    scenario, folder = SCENARIOS[name], TRACES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        model = without_dropout(TRACES / scenario.model, scratch / "model")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ranks = []
        for rank in range(scenario.ranks):
            group = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": scenario.ranks,
                "MASTER_PORT": port,
            }
            alone = (
                {}
                if scenario.ranks == 1
                else {key: str(value) for key, value in group.items()}
            )
            quiet = {
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "HF_HUB_OFFLINE": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }
            line = [
                sys.executable,
                __file__,
                "rank",
                name,
                str(rank),
                *arguments(scenario, model, scratch / str(rank)),
            ]
            ranks.append(
                subprocess.Popen(line, env=os.environ | quiet | alone, cwd=TRACES)
            )
        if any([rank.wait() for rank in ranks]):
            sys.exit(f"traces: {name} failed")


def main() -> None:
    """Parses the arguments."""
    names = sys.argv[1:]
    if names[:1] == ["rank"]:
        import trace_rank

        trace_rank.run(names[1], SCENARIOS[names[1]], int(names[2]), names[3:])
        return
    if unknown := [name for name in names if name not in SCENARIOS]:
        sys.exit(
            f"traces: there is no {unknown[0]}: name some of {', '.join(SCENARIOS)}"
        )
    import trace_texts

    trace_texts.write(TRACES / "data")
    make_unified(TRACES / "models" / "xlmr-m3")
    for name in names or SCENARIOS:
        print(name, file=sys.stderr, flush=True)
        record(name)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
