"""A checkpoint in ONNX Runtime, exported and driven as well as we know how.

Of the ways to export a BERT the one here was the fastest: PyTorch's older exporter on plain attention, whose pattern
the runtime knows how to fuse. Its separate optimiser gains nothing over what the runtime does when it loads.
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))

import places  # noqa: E402

BATCH = 32
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def export(folder: Path, target: Path) -> None:
    """Writes the body of a checkpoint, up to its last hidden state, as ONNX."""
    import torch
    from transformers import AutoModel

    body = AutoModel.from_pretrained(folder, attn_implementation="eager").float()

    class Hidden(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """Only the last hidden state, and arguments by place."""

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.body(ids, mask, types).last_hidden_state

    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {name: {0: "texts", 1: "tokens"} for name in [*INPUTS, "hidden"]}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Hidden().eval(),
            (ids, torch.ones_like(ids), torch.zeros_like(ids)),
            str(unfinished),
            input_names=INPUTS,
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    unfinished.rename(target)


def exported(folder: Path) -> Path:
    """The exported checkpoint in the cache, made first where it is missing."""
    weights = folder / "model.safetensors"
    made = f"{weights.resolve()} {weights.stat().st_size} {weights.stat().st_mtime_ns}"
    name = f"{folder.name}-{hashlib.sha256(made.encode()).hexdigest()[:12]}.onnx"
    target: Path = places.cache() / "onnx" / name
    if not target.is_file():
        print(f"onnx: exporting {folder.name}", file=sys.stderr, flush=True)
        export(folder, target)
    return target


class OnnxRuntime:
    """Tokenises, sorts by length, runs batches of 32, pools, normalises, and restores the order."""

    def __init__(self, folder: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.graph_optimization_level = level
        path, providers = str(exported(folder)), ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers)
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings["max_seq_length"])
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        self._mean = bool(pooling["pooling_mode_mean_tokens"])

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """The normalised vectors, in the order of the texts."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda row: len(encodings[row].ids))
        parts = []
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            parts.append(self._vectors([encodings[row] for row in rows]))
        vectors = np.concatenate(parts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        restored = np.empty_like(vectors)
        restored[order] = vectors
        return restored

    def _vectors(self, batch: list[Encoding]) -> NDArray[np.float32]:
        """The pooled vectors of one padded batch."""
        longest = max(len(encoding.ids) for encoding in batch)
        ids = np.zeros((len(batch), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(batch):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        feed = dict(zip(INPUTS, [ids, mask, np.zeros_like(ids)], strict=True))
        hidden: NDArray[np.float32] = self._session.run(["hidden"], feed)[0]
        if not self._mean:
            return np.asarray(hidden[:, 0])
        weights = mask[:, None, :].astype(np.float32)
        return np.asarray((weights @ hidden)[:, 0] / weights.sum(axis=2))
