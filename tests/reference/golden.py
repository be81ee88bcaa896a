"""Writes the golden files: what the reference implementations make of fixed texts, in f32 on the CPU.

usage: golden.py [NAME]...      all of them where none is named; see tests/golden/README.md

Runs in the reference environment. Each text goes through the model alone, so that no padding takes part.
"""

import json
import sys
from array import array
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import texts
import weights
from places import GOLDEN, model
from weights import Tensor

CHECKPOINTS = GOLDEN / "checkpoints"
EMBEDDERS = ["bert-cls", "bert-mean", "xlmr-bpe", "xlmr-cls"]
CROSS_ENCODERS = ["bert-cross", "xlmr-cross"]
MADE_BY = ["torch", "transformers", "sentence-transformers", "tokenizers"]


def floats(name: str, numbers: NDArray[Any]) -> Tensor:
    """A tensor of f32 out of an array of any shape."""
    data = numbers.astype("<f4").tobytes()
    return Tensor(name, "F32", list(numbers.shape), lambda: data)


def ragged(prefix: str, names: list[str], rows: list[list[list[int]]]) -> list[Tensor]:
    """Lists of unequal length as one flat tensor for each name, and `offsets` of `len(rows) + 1`.

    `rows[i][j]` is what text `i` has under `names[j]`; all of one text are equally long.
    """
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row[0]))
    flat = {name: [n for row in rows for n in row[j]] for j, name in enumerate(names)}
    return [
        integers(prefix + name, numbers)
        for name, numbers in (flat | {"offsets": offsets}).items()
    ]


def integers(name: str, numbers: list[int]) -> Tensor:
    """A tensor of i32 in one dimension."""
    data = array("i", numbers).tobytes()
    return Tensor(name, "I32", [len(numbers)], lambda: data)


def write(name: str, rows: Iterable[dict[str, str]], tensors: list[Tensor]) -> None:
    """Writes the inputs and what became of them. JSON in ASCII: some texts hold odd characters."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (GOLDEN / f"{name}.jsonl").write_text(lines, "ascii")
    versions = {package: version(package) for package in MADE_BY}
    weights.write(GOLDEN / f"{name}.safetensors", tensors, **versions)
    print(f"golden: {name}: {lines.count(chr(10))} rows", file=sys.stderr, flush=True)


def embed(
    reference: SentenceTransformer, inputs: list[str], prompt: str | None
) -> list[Tensor]:
    """Ids and vectors of each text, with the checkpoint's prompt of this name in front."""
    prefix = f"{prompt}." if prompt else ""
    written = reference.prompts[prompt] if prompt else ""
    rows, vectors = [], []
    for text in inputs:
        features = reference.preprocess([written + text])
        rows.append([features["input_ids"][0].tolist()])
        vectors.append(torch.from_numpy(reference.encode(text, prompt_name=prompt)))
    return [
        floats(prefix + "embeddings", torch.stack(vectors).numpy()),
        *ragged(prefix, ["ids"], rows),
    ]


def agrees(folder: Path, inputs: list[str], ids: Tensor, window: int) -> None:
    """Stops where the reference reads the tokenizer otherwise than its own file says."""
    if not (folder / "tokenizer.json").is_file():
        return
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(window)
    flat = [number for text in inputs for number in tokenizer.encode(text).ids]
    assert array("i", flat).tobytes() == ids.data(), (
        f"{folder.name}: tokenizer.json differs"
    )


def golden_embedder(name: str, folder: Path) -> None:
    """The golden files of an embedding model: without a prompt, and with each that it has."""
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    reference.eval().float()
    window = reference.max_seq_length
    small = texts.for_small_models
    inputs = texts.for_minilm() if name == "minilm" else small(window)
    tensors = embed(reference, inputs, None)
    agrees(folder, inputs, tensors[1], window)
    for prompt in sorted(key for key, text in reference.prompts.items() if text):
        tensors += embed(reference, inputs, prompt)
    write(name, ({"text": text} for text in inputs), tensors)


def golden_cross_encoder(name: str) -> None:
    """The golden files of a cross-encoder: only the document is cut to the window."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    scorer = AutoModelForSequenceClassification.from_pretrained(CHECKPOINTS / name)
    scorer.eval().float()
    inputs = texts.pairs(tokenizer.model_max_length)
    rows, logits = [], []
    for query, document in inputs:
        pair = tokenizer(
            query, document, truncation="only_second", return_token_type_ids=True
        )
        rows.append([pair["input_ids"], pair["token_type_ids"]])
        batch = {key: torch.tensor([value]) for key, value in pair.items()}
        logits.append(scorer(**batch).logits.reshape(()))
    tensors = [
        floats("logits", torch.stack(logits).numpy()),
        *ragged("", ["ids", "type_ids"], rows),
    ]
    write(
        name,
        ({"query": query, "document": document} for query, document in inputs),
        tensors,
    )


def main() -> None:
    """Parses the arguments."""
    known = ["minilm", *EMBEDDERS, *CROSS_ENCODERS]
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"golden.py: no {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.inference_mode():
        for name in names:
            if name == "minilm":
                golden_embedder(name, model("all-MiniLM-L6-v2"))
            elif name in EMBEDDERS:
                golden_embedder(name, CHECKPOINTS / name)
            else:
                golden_cross_encoder(name)


if __name__ == "__main__":
    main()
