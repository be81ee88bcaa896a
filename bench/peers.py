"""Measures a peer of Beige in this process: texts in, vectors out, tokenising included.

usage: peers.py --peer st|ort --model DIR --corpus FILE [--dtype f32|bf16] [--seconds N] [--repetitions N]

st is sentence-transformers with its own batching, ort is ONNX Runtime; both make batches of 32 texts of like length.
Each is warmed up, then run several times over as much of the corpus as fits the time, but over five batches at
least where texts differ in length, for sorting to have its effect. Prints one JSON object. Runs in the reference
environment.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from onnx_peer import OnnxRuntime

BATCH = 32
ENOUGH = 5 * BATCH

Embed = Callable[[list[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Report:
    """What is printed. Tokens are those of the texts after truncation: padding is not counted."""

    peer: str
    model: str
    corpus: str
    dtype: str
    threads: int
    texts: int
    tokens: int
    texts_per_s: float
    tokens_per_s: float
    repetitions: list[float]
    first: list[float]


def sentence_transformers(folder: Path, dtype: str, threads: int) -> Embed:
    """The peer that most people use; it sorts by length by itself."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": kind})

    def embed(texts: list[str]) -> NDArray[np.float32]:
        found = model.encode(texts, batch_size=BATCH, convert_to_tensor=True)
        return np.asarray(found.float())

    return embed


def onnx_runtime(folder: Path, dtype: str, threads: int) -> Embed:
    """The peer that is fastest on most processors."""
    if dtype != "f32":
        sys.exit("peers.py: ort runs in f32 only")
    return OnnxRuntime(folder, threads).embed


PEERS = {"st": sentence_transformers, "ort": onnx_runtime}


def lengths(folder: Path, texts: list[str]) -> list[int]:
    """Tokens that the model reads of each text."""
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings["max_seq_length"])
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


def timed(embed: Embed, texts: list[str]) -> float:
    """Seconds that it takes to embed these texts."""
    start = time.perf_counter()
    embed(texts)
    return time.perf_counter() - start


def as_many(embed: Embed, tokens: list[int], texts: list[str], seconds: float) -> int:
    """How many texts to run over, in whole batches, so that it takes about `seconds`; warms up by the way."""
    embed(texts[:8])
    rate = sum(tokens[:BATCH]) / timed(embed, texts[:BATCH])
    alike = min(tokens) == max(tokens)
    batches = int(rate * seconds / statistics.mean(tokens) / BATCH)
    return max(batches * BATCH, BATCH if alike else ENOUGH)


def measure(arguments: argparse.Namespace) -> Report:
    """Runs one peer on one corpus."""
    folder, corpus = Path(arguments.model), Path(arguments.corpus)
    lines = corpus.read_text("utf-8").splitlines()
    texts = [str(json.loads(line)["text"]) for line in lines]
    tokens = lengths(folder, texts)
    embed = PEERS[arguments.peer](folder, arguments.dtype, arguments.threads)
    count = as_many(embed, tokens, texts, arguments.seconds / arguments.repetitions)
    texts, total = texts[:count], sum(tokens[:count])
    runs = [timed(embed, texts) for _ in range(arguments.repetitions)]
    took = statistics.median(runs)
    return Report(
        peer=arguments.peer,
        model=folder.name,
        corpus=corpus.stem,
        dtype=arguments.dtype,
        threads=arguments.threads,
        texts=len(texts),
        tokens=total,
        texts_per_s=len(texts) / took,
        tokens_per_s=total / took,
        repetitions=runs,
        # Peers that were told to do the same agree in it.
        first=[round(float(number), 5) for number in embed(texts[:1])[0, :3]],
    )


def main() -> None:
    """Parses the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", choices=sorted(PEERS), required=True)
    parser.add_argument("--model", required=True, help="a checkpoint's directory")
    parser.add_argument("--corpus", required=True, help="JSON lines with a `text`")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seconds", type=float, default=15.0, help="in all, about")
    parser.add_argument("--repetitions", type=int, default=3)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores)
    print(json.dumps(asdict(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
