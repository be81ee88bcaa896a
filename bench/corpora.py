"""Makes the benchmark's texts out of the demonstration's passages, always the same.

usage: corpora.py       writes corpora/short.jsonl, medium.jsonl and long.jsonl

short: 5 to 20 tokens, as questions are; medium: 50 to 250, as passages are; long: 512 and more, to be cut to a
window. Lengths are spread evenly over their range. Tokens are counted by the default model's tokenizer, special
ones included; other BERT vocabularies of English differ little. Runs in the reference environment.
"""

import itertools
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))

import places  # noqa: E402

SHORT, MEDIUM, LONG = range(5, 21), range(50, 251), range(520, 681)
SPECIAL = 2


class Counter:
    """Counts tokens; whole words are independent of each other, so counts add up."""

    def __init__(self) -> None:
        path = places.model("all-MiniLM-L6-v2") / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, text: str) -> int:
        """Tokens of the text, special ones not counted."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def passages() -> list[dict[str, str]]:
    """The demonstration's passages."""
    path = places.CHECKOUT / "demo" / "passages.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def sentences(text: str) -> list[str]:
    """The sentences of a text; initials do not end one."""
    return re.split(r"(?<=[a-z0-9)][.?!]) (?=[A-Z])", text)


def phrases(sentence: str) -> Iterator[str]:
    """A sentence whole, and cut off at each comma."""
    for mark in re.finditer(r"[,;:] |$", sentence):
        yield sentence[: mark.start()]


def short(counter: Counter, count: int) -> list[str]:
    """Titles, sentences and their beginnings; equally many of each length."""
    by_length: dict[int, list[str]] = defaultdict(list)
    found = [passage["title"] for passage in passages()]
    for passage in passages():
        for sentence in sentences(passage["text"]):
            found += phrases(sentence)
    for text in dict.fromkeys(found):
        by_length[counter.count(text) + SPECIAL].append(text)
    rng = random.Random("short")
    lengths = [SHORT[index % len(SHORT)] for index in range(count)]
    chosen = [
        text
        for length in SHORT
        for text in rng.sample(by_length[length], lengths.count(length))
    ]
    rng.shuffle(chosen)
    return chosen


def joined(counter: Counter, count: int, lengths: range) -> list[str]:
    """Runs of sentences out of passages of one subject, each of about a length drawn from `lengths`."""
    rng = random.Random(f"{lengths}")
    subjects: dict[str, list[str]] = defaultdict(list)
    for passage in passages():
        subjects[passage["id"].split("-")[0]].append(passage["text"])
    texts: dict[str, None] = {}
    for subject in itertools.cycle(sorted(subjects)):
        if len(texts) == count:
            break
        parts = [
            s for text in rng.sample(subjects[subject], 12) for s in sentences(text)
        ]
        text = run(counter, parts, rng.choice(lengths))
        if counter.count(text) + SPECIAL in lengths:
            texts[text] = None
    return list(texts)


def run(counter: Counter, parts: list[str], length: int) -> str:
    """As many of the sentences as bring the text nearest to `length` tokens."""
    taken, tokens = [], SPECIAL
    for part in parts:
        more = counter.count(part)
        if tokens + more - length > length - tokens:
            break
        taken.append(part)
        tokens += more
    return " ".join(taken)


def write(name: str, texts: list[str], counter: Counter) -> None:
    """Writes one corpus, with the tokens of each text."""
    tokens = [counter.count(text) + SPECIAL for text in texts]
    rows = [{"text": text, "tokens": n} for text, n in zip(texts, tokens, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = HERE / "corpora" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines, "utf-8")
    mean = sum(tokens) / len(tokens)
    print(
        f"{name}: {len(texts)} texts, {min(tokens)} to {max(tokens)} tokens, mean {mean:.1f}, "
        f"{len(lines.encode()):,} bytes"
    )


def main() -> None:
    """Writes all three."""
    counter = Counter()
    write("short", short(counter, 1000), counter)
    write("medium", joined(counter, 500, MEDIUM), counter)
    write("long", joined(counter, 150, LONG), counter)


if __name__ == "__main__":
    main()
