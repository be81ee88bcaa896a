"""Random weights of BERT-shaped encoders, written as safetensors.

Standard library only, and exact arithmetic only, so that every machine makes the same bytes.
"""

import json
import random
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

POOL = 1 << 20


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each kind of parameter."""

    weight: tuple[float, float]
    bias: tuple[float, float]
    gain: tuple[float, float]
    embedding: tuple[float, float]


# As a checkpoint is before its training: what the published ones start from.
FRESH = Spread((0.0, 0.02), (0.0, 0.0), (1.0, 0.0), (0.0, 0.02))
# Wide enough that a mistake in any part of a tiny model shows in its output.
WIDE = Spread((0.0, 0.25), (0.0, 0.2), (1.0, 0.2), (0.0, 0.7))


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder, in the order of a `config.json`."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    types: int


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written, whose numbers are made when their turn comes."""

    name: str
    dtype: str
    shape: list[int]
    data: Callable[[], bytes]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * {"F32": 4, "I32": 4, "I64": 8}[self.dtype]


class Normals:
    """An endless supply of nearly normal numbers: slices, at random, of one pool of them.

    A hundred million numbers take a second so, and minutes one by one.
    """

    def __init__(self, seed: str, spread: Spread) -> None:
        """Draws the pool of the generator that `seed` starts."""
        self._random = random.Random(seed)
        uniform = self._random.random
        # The sum of twelve uniform numbers has variance 1, and needs no logarithm to differ by library.
        unit = [sum(uniform() for _ in range(12)) - 6.0 for _ in range(POOL)]
        self._pools: dict[str, memoryview] = {}
        for kind, (mean, deviation) in vars(spread).items():
            numbers = array("f", (mean + deviation * number for number in unit))
            self._pools[kind] = memoryview(numbers.tobytes())

    def rows(self, kind: str, shape: list[int]) -> bytes:
        """Numbers of this kind for a tensor of this shape, each row drawn for itself."""
        pool, width = self._pools[kind], 4 * shape[-1]
        starts = (
            4 * self._random.randrange(POOL - shape[-1])
            for _ in range(prod(shape[:-1]))
        )
        return b"".join(pool[start : start + width] for start in starts)


def encoder(shape: Shape, prefix: str) -> Iterator[tuple[str, str, list[int]]]:
    """Name, kind and shape of each parameter of a BERT or XLM-RoBERTa body, pooler left out."""
    hidden, wide = shape.hidden, shape.intermediate
    tables = [
        ("word", shape.vocab),
        ("position", shape.positions),
        ("token_type", shape.types),
    ]
    for name, rows in tables:
        yield (
            f"{prefix}embeddings.{name}_embeddings.weight",
            "embedding",
            [rows, hidden],
        )
    yield from norm(f"{prefix}embeddings.LayerNorm", hidden)
    for index in range(shape.layers):
        layer = f"{prefix}encoder.layer.{index}."
        for part in ["query", "key", "value"]:
            yield from linear(f"{layer}attention.self.{part}", hidden, hidden)
        yield from linear(f"{layer}attention.output.dense", hidden, hidden)
        yield from norm(f"{layer}attention.output.LayerNorm", hidden)
        yield from linear(f"{layer}intermediate.dense", wide, hidden)
        yield from linear(f"{layer}output.dense", hidden, wide)
        yield from norm(f"{layer}output.LayerNorm", hidden)


def linear(name: str, out: int, into: int) -> Iterator[tuple[str, str, list[int]]]:
    """The two parameters of a linear layer, as PyTorch lays them out."""
    yield f"{name}.weight", "weight", [out, into]
    yield f"{name}.bias", "bias", [out]


def norm(name: str, width: int) -> Iterator[tuple[str, str, list[int]]]:
    """The two parameters of a layer normalisation."""
    yield f"{name}.weight", "gain", [width]
    yield f"{name}.bias", "bias", [width]


def fill(
    parameters: Iterable[tuple[str, str, list[int]]], normals: Normals
) -> list[Tensor]:
    """Gives each parameter its numbers, to be drawn in this order."""
    return [
        Tensor(name, "F32", shape, partial(normals.rows, kind, shape))
        for name, kind, shape in parameters
    ]


def position_ids(count: int) -> Tensor:
    """The buffer that older checkpoints carry among their weights."""
    numbers = struct.pack(f"<{count}q", *range(count))
    return Tensor("embeddings.position_ids", "I64", [1, count], lambda: numbers)


def write(path: Path, tensors: list[Tensor], **metadata: str) -> None:
    """Writes one safetensors file; the library's own writer shuffles its metadata."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | metadata}
    end = 0
    for tensor in tensors:
        place = [end, end + tensor.size]
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": place,
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.data())


def write_shards(folder: Path, tensors: list[Tensor], shards: int) -> None:
    """Writes the tensors over so many files, with the index that says which holds what."""
    size = -(-len(tensors) // shards)
    places: dict[str, str] = {}
    for shard in range(shards):
        part = tensors[shard * size : (shard + 1) * size]
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write(folder / name, part)
        places |= {tensor.name: name for tensor in part}
    metadata = {"total_size": sum(tensor.size for tensor in tensors)}
    index = {"metadata": metadata, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n"
    )
