"""What a fine-tuning is trained and measured on, from a data set that is not part of the project."""

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What an evaluation is cut down to, so that it takes some seconds.
QUERIES, DOCUMENTS = 2_000, 2_000

# Documents and queries by id, and which of the former answer each of the latter.
Judged = tuple[dict[str, str], dict[str, str], dict[str, set[str]]]


def prepare(source: Path, to: Path, group: int) -> str:
    """Writes `train.jsonl`, `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`; says how much that is.

    Measured is on some of the queries, over their answers and some other documents. No row to train on asks what the
    test asks; those with too few negatives for a group get other rows' positives.
    """
    to.mkdir(parents=True)
    documents, queries, answers = judged(source)
    asked = mixed(answers)[:QUERIES]
    kept = cut(documents, [answers[query] for query in asked])
    write(to / "corpus.jsonl", [{"id": name, "text": documents[name]} for name in kept])
    write(to / "queries.jsonl", [{"id": name, "text": queries[name]} for name in asked])
    there = {query: sorted(answers[query] & set(kept)) for query in asked}
    qrels = [f"{query}\t{name}\t1\n" for query in asked for name in there[query]]
    (to / "qrels.tsv").write_text("".join(qrels), "utf-8")
    rows = trained_on(source / "train.jsonl", set(queries.values()), group)
    write(to / "train.jsonl", rows)
    return (
        f"{len(rows):,} rows to train on; measured on {len(asked):,} of {len(queries):,} queries "
        f"over {len(kept):,} of {len(documents):,} documents"
    )


def judged(source: Path) -> Judged:
    """A retrieval set as it is; of a classification, texts that may be trained on answer those of the test that have
    the same label."""
    if (source / "qrels.tsv").is_file():
        documents, queries = (
            {row["id"]: row["text"] for row in read(source / f"{name}.jsonl")}
            for name in ("corpus", "queries")
        )
        answers: dict[str, set[str]] = {}
        for query, document, grade in columns(source / "qrels.tsv"):
            if int(grade) > 0:
                answers.setdefault(query, set()).add(document)
        return documents, queries, answers
    train, test = columns(source / "train.tsv"), columns(source / "test.tsv")
    documents = {f"d{i}": text for i, (_, text) in enumerate(train)}
    queries = {f"q{i}": text for i, (_, text) in enumerate(test)}
    labelled: dict[str, set[str]] = {}
    for i, (label, _) in enumerate(train):
        labelled.setdefault(label, set()).add(f"d{i}")
    answers = {f"q{i}": labelled[label] for i, (label, _) in enumerate(test)}
    return documents, queries, answers


def cut(documents: Iterable[str], answers: list[set[str]]) -> list[str]:
    """Some of the documents: all answers first, unless a query has many, of which the cut takes its share."""
    single = all(len(names) == 1 for names in answers)
    wanted = [name for names in answers for name in names] if single else []
    return list(dict.fromkeys([*wanted, *mixed(documents)]))[:DOCUMENTS]


def trained_on(path: Path, held_out: set[str], group: int) -> list[dict[str, Any]]:
    """Rows with enough negatives for a group."""
    keys = ("query", "pos", "neg")
    rows = [{key: row[key] for key in keys} for row in read(path)]
    rows = [row for row in rows if row["query"] not in held_out]
    draw = random.Random(0)
    for row in rows:
        while len(row["neg"]) < group - 1:
            other = draw.choice(rows)["pos"][0]
            if other not in [*row["pos"], *row["neg"]]:
                row["neg"].append(other)
    return rows


def mixed(ids: Iterable[str]) -> list[str]:
    """In an order that is always the same and means nothing."""
    return sorted(ids, key=lambda name: hashlib.md5(name.encode()).digest())


def read(path: Path) -> list[Any]:
    """The values of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def columns(path: Path) -> list[list[str]]:
    """The fields of a file with tabs between."""
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes JSON Lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf-8")
