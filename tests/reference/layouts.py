"""The JSON files around the weights, as published checkpoints have them."""

import json
from pathlib import Path
from typing import Any

from weights import Shape

Json = dict[str, Any]


def dump(path: Path, value: object) -> None:
    """Writes JSON, making the folder where it is missing."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def config(shape: Shape, family: str, architecture: str) -> Json:
    """`config.json` of a `family`: `bert` or `xlm-roberta`."""
    special = {"pad_token_id": 0}
    if family == "xlm-roberta":
        special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.1,
        **special,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12 if family == "bert" else 1e-05,
        "max_position_embeddings": shape.positions,
        "model_type": family,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": shape.types,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def one_label() -> Json:
    """What a cross-encoder's `config.json` says about its single score."""
    return {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def tokenizer_config(family: str, window: int, **more: object) -> Json:
    """`tokenizer_config.json`, with the class's name and its special tokens."""
    if family == "bert":
        names = {
            "cls": "[CLS]",
            "mask": "[MASK]",
            "pad": "[PAD]",
            "sep": "[SEP]",
            "unk": "[UNK]",
        }
        kind: Json = {"tokenizer_class": "BertTokenizer", "strip_accents": None}
        kind |= {"tokenize_chinese_chars": True}
    else:
        names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "mask": "<mask>"}
        names |= {"pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
        kind = {"tokenizer_class": "XLMRobertaTokenizer"}
    tokens = {f"{role}_token": token for role, token in names.items()}
    return {**tokens, "model_max_length": window, **kind, **more}


def pooling(hidden: int, mode: str) -> Json:
    """`1_Pooling/config.json` as it was for years: one flag for each way."""
    flags = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    modes = {f"pooling_mode_{flag}": flag.startswith(mode + "_t") for flag in flags}
    return {"word_embedding_dimension": hidden, **modes}


def modules(*, normalize: bool) -> list[Json]:
    """`modules.json`: transformer, pooling, and normalisation where the model has it."""
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if normalize:
        parts.append(("2_Normalize", "Normalize"))
    return [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(parts)
    ]


def recent_modules() -> list[Json]:
    """`modules.json` as releases since 6 write it."""
    base = "sentence_transformers."
    kinds = [
        "base.modules.transformer.Transformer",
        "sentence_transformer.modules.pooling.Pooling",
    ]
    kinds.append("base.modules.normalize.Normalize")
    paths = ["", "1_Pooling", "2_Normalize"]
    return [
        {"idx": index, "name": str(index), "path": path, "type": base + kind}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]


def recent_pooling(hidden: int, mode: str) -> Json:
    """`1_Pooling/config.json` as releases since 6 write it."""
    return {"embedding_dimension": hidden, "pooling_mode": mode, "include_prompt": True}


def recent_transformer() -> Json:
    """`sentence_bert_config.json` as releases since 6 write it: the window is left to the tokenizer."""
    method = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": method},
        "module_output_name": "token_embeddings",
    }
