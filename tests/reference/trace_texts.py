"""The texts that runs of FlagEmbedding are recorded on: written for it, drawn without chance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLANTS = {
    "fern": ("spores on the underside of its fronds", "shade beside streams"),
    "moss": ("spores in small capsules on stalks", "damp stone and old bark"),
    "oak": ("acorns that jays carry off and forget", "deep loam on slopes"),
    "willow": (
        "seeds in white down that the wind takes",
        "river banks and wet meadows",
    ),
    "poppy": (
        "a thousand seeds shaken out of a dry capsule",
        "fields that were ploughed last year",
    ),
    "heather": ("tiny bells that bees visit in August", "poor and sour sand"),
    "juniper": ("berries that need two years to ripen", "dry hills where sheep graze"),
    "sundew": ("seeds as fine as dust", "bogs where there is little else to eat"),
    "larch": (
        "cones that stay on the branch for years",
        "cold valleys below the tree line",
    ),
    "ivy": ("black berries in late winter", "walls that face north"),
    "clover": ("pods of a few seeds each", "pastures that nobody mows in June"),
    "reed": ("plumes that rustle until spring", "the shallow edge of lakes"),
}

ASKED = {
    "spread": (
        "How does the {plant} spread?",
        "The {plant} spreads by {spread}, and it does so every year.",
    ),
    "place": (
        "Where does the {plant} grow?",
        "Look for the {plant} in one place first: {place}. It is rarely alone there.",
    ),
}


def score(number: int) -> float:
    """A teacher's score: some number between -2 and 6, exact in decimal."""
    return round(((number * 37) % 81) / 10 - 2, 1)


def rows() -> Iterator[dict[str, Any]]:
    """Every plant is asked about twice; what is said of others is wrong."""
    plants = list(PLANTS)
    for at, plant in enumerate(plants):
        for question, answer in ASKED.values():
            facts = dict(zip(("spread", "place"), PLANTS[plant], strict=True))
            right = answer.format(plant=plant, **facts)
            others = [
                plants[(at + step) % len(plants)] for step in range(1, 2 + at % 5)
            ]
            wrong = [
                answer.format(
                    plant=other,
                    **dict(zip(("spread", "place"), PLANTS[other], strict=True)),
                )
                for other in others
            ]
            pos = [right, f"{right} So it was written down in {1900 + at}."]
            yield {
                "query": question.format(plant=plant),
                "pos": pos,
                "neg": wrong,
                "pos_scores": [score(at + 50), score(at + 60)],
                "neg_scores": [score(at * 7 + i) for i in range(len(wrong))],
            }


def write(folder: Path) -> None:
    """All files of data below `folder`."""
    everything = list(rows())
    dump(folder / "questions.jsonl", everything)
    prompted = [
        row | {"prompt": "Find the place. ", "type": "normal"}
        for row in everything[1::2]
    ]
    dump(folder / "places" / "first.jsonl", prompted[:7])
    dump(folder / "places" / "second.jsonl", prompted[7:])
    own_group = [
        {
            "query": row["query"],
            "pos": row["pos"][:1],
            "neg": row["neg"],
            "prompt": "Of which kind? ",
            "type": "symmetric_class",
        }
        for row in everything[::2]
    ]
    dump(folder / "kinds-no_in_batch_neg" / "kinds.jsonl", own_group)
    # What one file says and the other does not.
    own_prompt = [row | {"prompt": f"({at}) "} for at, row in enumerate(everything)]
    dump(folder / "asked" / "prompted.jsonl", own_prompt[:8])
    dump(folder / "asked" / "plain.jsonl", everything[8:16])
    sized = {"train_group_size": 4, "batch_size": 3}
    dump(folder / "sized" / "sized.jsonl", [row | sized for row in everything[:9]])
    typed = [row | {"type": "normal"} for row in everything[12:19]]
    dump(folder / "sized" / "typed.jsonl", [unscored(row) for row in typed])
    paired = [
        row | {"query_prompt": "Q: "} | ({} if at % 2 else {"passage_prompt": "P: "})
        for at, row in enumerate(everything[:9])
    ]
    dump(folder / "pairs" / "prompted.jsonl", paired)
    dump(folder / "pairs" / "plain.jsonl", [nothing_said(), *everything[20:]])


def unscored(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "scores" not in name}


def nothing_said() -> dict[str, Any]:
    """Texts of which little is left: capitals whose small letters depend on where they stand, and nothing at all."""
    texts = {"query": "ΟΔΟΣ ΣΟΦΙΑΣ", "pos": ["ΛΟΓΟΣ, ΠΟΛΙΣ"], "neg": ["", " "]}
    return texts | {"pos_scores": [1.0], "neg_scores": [0.5, -1.0]}


def dump(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
