"""From single measurements to a table: medians, ratios, and shares of what the machine can do."""

import statistics
from typing import Any

Json = dict[str, Any]

HEADERS = [
    "model",
    "corpus",
    "dtype",
    "Beige",
    "sentence-transformers",
    "ONNX Runtime",
    "/ st",
    "/ ort",
    "of GEMM",
    "p50 ms",
    "p99 ms",
]


def median(runs: list[Json], key: str, **fields: str) -> float | None:
    """The median of a figure over the runs with these fields."""
    found = [
        run[key] for run in runs if all(run[name] == fields[name] for name in fields)
    ]
    return statistics.median(found) if found else None


def summarise(runs: list[Json], gemm: dict[str, Json]) -> list[Json]:
    """One row for each model, corpus and dtype, in the order in which they were first measured."""
    keys = dict.fromkeys((run["model"], run["corpus"], run["dtype"]) for run in runs)
    return [row(runs, gemm, *key) for key in keys]


def row(
    runs: list[Json], gemm: dict[str, Json], model: str, corpus: str, dtype: str
) -> Json:
    """Medians of all that was measured alike, and what they are to each other."""
    same = {"model": model, "corpus": corpus, "dtype": dtype}
    rates = {
        name: median(runs, "tokens_per_s", contender=name, **same)
        for name in ["beige", "st", "ort"]
    }
    # ONNX Runtime has no bf16 to compare with, so its f32 stands there.
    if rates["ort"] is None:
        f32 = same | {"dtype": "f32"}
        rates["ort"] = median(runs, "tokens_per_s", contender="ort", **f32)
    beige = rates["beige"]
    return {
        **same,
        **rates,
        "ratio_st": ratio(beige, rates["st"]),
        "ratio_ort": ratio(beige, rates["ort"]),
        "share": share(beige, gemm.get(model), dtype),
        "p50_ms": median(runs, "p50_ms", contender="beige", **same),
        "p99_ms": median(runs, "p99_ms", contender="beige", **same),
    }


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """How many times as fast."""
    return ours / theirs if ours and theirs else None


def share(rate: float | None, gemm: Json | None, dtype: str) -> float | None:
    """The part of the measured rate of matrix products that ended in answers."""
    if not rate or not gemm or dtype not in gemm["gflops"]:
        return None
    return float(rate * gemm["flops_per_token"] / (gemm["gflops"][dtype] * 1e9))


def cell(value: float | None, form: str) -> str:
    """A number in its form, or a dash."""
    return "-" if value is None else format(value, form)


def table(rows: list[Json]) -> str:
    """The rows as a table of Markdown, tokens per second first."""
    lines = [HEADERS]
    for entry in rows:
        cells = [str(entry[name]) for name in ["model", "corpus", "dtype"]]
        cells += [cell(entry[name], ",.0f") for name in ["beige", "st", "ort"]]
        cells += [cell(entry[name], ".2f") for name in ["ratio_st", "ratio_ort"]]
        cells.append(cell(entry["share"], ".0%"))
        cells += [cell(entry[name], ".1f") for name in ["p50_ms", "p99_ms"]]
        lines.append(cells)
    widths = [
        max(len(line[column]) for line in lines) for column in range(len(HEADERS))
    ]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )  # fmt: skip
