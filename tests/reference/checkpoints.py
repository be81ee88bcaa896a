"""Makes random checkpoints, always the same, as the directories that published ones come in.

usage: checkpoints.py small                     the tiny ones for the golden files, into tests/golden/checkpoints
       checkpoints.py random-bge-small|random-bge-base …   the benchmark's, into the cache

The small ones need the reference environment, for their tokenizers. The benchmark's need only the standard
library and the default model, whose tokenizer they borrow; they have the shapes of BGE's English v1.5 models.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import layouts
import places
import weights
from layouts import dump
from weights import FRESH, WIDE, Normals, Shape

PROMPTS = {"query": "Find what answers this: ", "document": "Keep in mind: "}

BENCHMARK = {
    "random-bge-small": Shape(30522, 384, 12, 12, 1536, 512, 2),
    "random-bge-base": Shape(30522, 768, 12, 12, 3072, 512, 2),
}


def bert_cls(folder: Path) -> None:
    """CLS pooling, normalised, prompts, an older checkpoint's `position_ids`; window below the positions."""
    from tokenisers import word_piece

    shape = Shape(
        vocab=900, hidden=48, layers=3, heads=4, intermediate=96, positions=128, types=2
    )
    bert_files(folder, shape, window=64)
    word_piece(shape.vocab, lowercase=True).save(str(folder / "tokenizer.json"))
    dump(
        folder / "config_sentence_transformers.json",
        {"prompts": PROMPTS, "default_prompt_name": None},
    )
    body = chain(weights.encoder(shape, ""), weights.linear("pooler.dense", 48, 48))
    tensors = [
        weights.position_ids(shape.positions),
        *weights.fill(body, Normals("bert-cls", WIDE)),
    ]
    weights.write(folder / "model.safetensors", tensors)


def bert_mean(folder: Path) -> None:
    """Mean pooling, not normalised, cased, only a `vocab.txt`, two shards; window from the tokenizer."""
    from tokenisers import word_piece

    shape = Shape(
        vocab=1000, hidden=32, layers=2, heads=4, intermediate=80, positions=96, types=2
    )
    dump(folder / "config.json", layouts.config(shape, "bert", "BertModel"))
    dump(
        folder / "tokenizer_config.json",
        layouts.tokenizer_config("bert", 80, do_lower_case=False),
    )
    numbers = word_piece(shape.vocab, lowercase=False).get_vocab()
    lines = "".join(token + "\n" for token in sorted(numbers, key=numbers.__getitem__))
    (folder / "vocab.txt").write_text(lines, "utf-8")
    dump(folder / "modules.json", layouts.modules(normalize=False))
    dump(folder / "1_Pooling" / "config.json", layouts.pooling(shape.hidden, "mean"))
    body = weights.encoder(shape, "")
    weights.write_shards(folder, weights.fill(body, Normals("bert-mean", WIDE)), 2)


def xlmr_cls(folder: Path) -> None:
    """As bge-m3's dense vectors: positions from pad id 1 on, one token type, Unigram, CLS, normalised."""
    from tokenisers import unigram

    shape = Shape(
        vocab=900, hidden=32, layers=2, heads=2, intermediate=64, positions=98, types=1
    )
    xlmr_files(folder, shape, "XLMRobertaModel", window=96)
    dump(folder / "tokenizer.json", unigram(shape.vocab))
    dump(
        folder / "sentence_bert_config.json",
        {"max_seq_length": 96, "do_lower_case": False},
    )
    dump(folder / "modules.json", layouts.modules(normalize=True))
    dump(folder / "1_Pooling" / "config.json", layouts.pooling(shape.hidden, "cls"))
    body = chain(weights.encoder(shape, ""), weights.linear("pooler.dense", 32, 32))
    weights.write(
        folder / "model.safetensors", weights.fill(body, Normals("xlmr-cls", WIDE))
    )


def xlmr_bpe(folder: Path) -> None:
    """Byte pairs and the last token, in the layout that sentence-transformers writes since release 6."""
    from tokenisers import byte_pairs

    shape = Shape(
        vocab=600, hidden=48, layers=2, heads=6, intermediate=64, positions=66, types=1
    )
    xlmr_files(
        folder, shape, "XLMRobertaModel", window=64, tokenizer_class="RobertaTokenizer"
    )
    byte_pairs(shape.vocab).save(str(folder / "tokenizer.json"))
    dump(folder / "sentence_bert_config.json", layouts.recent_transformer())
    dump(folder / "modules.json", layouts.recent_modules())
    dump(
        folder / "1_Pooling" / "config.json",
        layouts.recent_pooling(shape.hidden, "lasttoken"),
    )
    body = weights.encoder(shape, "")
    weights.write(
        folder / "model.safetensors", weights.fill(body, Normals("xlmr-bpe", WIDE))
    )


def bert_cross(folder: Path) -> None:
    """A cross-encoder with BERT's pooler and token types."""
    from tokenisers import word_piece

    shape = Shape(
        vocab=900, hidden=32, layers=2, heads=4, intermediate=64, positions=64, types=2
    )
    config = layouts.config(shape, "bert", "BertForSequenceClassification")
    dump(folder / "config.json", config | layouts.one_label())
    dump(
        folder / "tokenizer_config.json",
        layouts.tokenizer_config("bert", 64, do_lower_case=True),
    )
    word_piece(shape.vocab, lowercase=True).save(str(folder / "tokenizer.json"))
    head = chain(
        weights.linear("bert.pooler.dense", 32, 32), weights.linear("classifier", 1, 32)
    )
    body = chain(weights.encoder(shape, "bert."), head)
    weights.write(
        folder / "model.safetensors", weights.fill(body, Normals("bert-cross", WIDE))
    )


def xlmr_cross(folder: Path) -> None:
    """A cross-encoder as bge-reranker-base: a two-layer head on the first token."""
    from tokenisers import unigram

    shape = Shape(
        vocab=900, hidden=48, layers=2, heads=4, intermediate=64, positions=98, types=1
    )
    xlmr_files(folder, shape, "XLMRobertaForSequenceClassification", window=96)
    dump(folder / "tokenizer.json", unigram(shape.vocab))
    head = chain(
        weights.linear("classifier.dense", 48, 48),
        weights.linear("classifier.out_proj", 1, 48),
    )
    body = chain(weights.encoder(shape, "roberta."), head)
    weights.write(
        folder / "model.safetensors", weights.fill(body, Normals("xlmr-cross", WIDE))
    )


def bert_files(folder: Path, shape: Shape, window: int) -> None:
    """What an English BGE model has beside its weights and its tokenizer."""
    dump(folder / "config.json", layouts.config(shape, "bert", "BertModel"))
    dump(
        folder / "tokenizer_config.json",
        layouts.tokenizer_config("bert", window, do_lower_case=True),
    )
    dump(
        folder / "sentence_bert_config.json",
        {"max_seq_length": window, "do_lower_case": True},
    )
    dump(folder / "modules.json", layouts.modules(normalize=True))
    dump(folder / "1_Pooling" / "config.json", layouts.pooling(shape.hidden, "cls"))


def xlmr_files(
    folder: Path, shape: Shape, architecture: str, window: int, **more: object
) -> None:
    """What every XLM-RoBERTa here has beside its weights and its tokenizer."""
    config = layouts.config(shape, "xlm-roberta", architecture)
    if architecture.endswith("Classification"):
        config |= layouts.one_label()
    dump(folder / "config.json", config)
    dump(
        folder / "tokenizer_config.json",
        layouts.tokenizer_config("xlm-roberta", window, **more),
    )


SMALL: dict[str, Callable[[Path], None]] = {
    "bert-cls": bert_cls,
    "bert-mean": bert_mean,
    "bert-cross": bert_cross,
    "xlmr-bpe": xlmr_bpe,
    "xlmr-cls": xlmr_cls,
    "xlmr-cross": xlmr_cross,
}


def benchmark(folder: Path) -> None:
    """One of the benchmark's models, by the folder's name."""
    shape = BENCHMARK[folder.name]
    bert_files(folder, shape, window=512)
    borrowed = places.model("all-MiniLM-L6-v2")
    for file in ["tokenizer.json", "vocab.txt", "special_tokens_map.json"]:
        shutil.copyfile(borrowed / file, folder / file)
    pooler = weights.linear("pooler.dense", shape.hidden, shape.hidden)
    body = chain(weights.encoder(shape, ""), pooler)
    normals = Normals(folder.name, FRESH)
    weights.write(folder / "model.safetensors", weights.fill(body, normals))


def put(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a checkpoint aside, then puts it in place of what was there: never half of one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as aside:
        made = Path(aside) / folder.name
        made.mkdir()
        make(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    print(f"models: made {folder.name}", file=sys.stderr, flush=True)


def main() -> None:
    """Parses the arguments."""
    names = sys.argv[1:]
    if not names or any(name != "small" and name not in BENCHMARK for name in names):
        sys.exit(f"usage: checkpoints.py {{small,{','.join(BENCHMARK)}}}...")
    for name in names:
        if name == "small":
            for small, make in SMALL.items():
                put(places.GOLDEN / "checkpoints" / small, make)
        elif not (places.model(name) / "model.safetensors").is_file():
            put(places.model(name), benchmark)


if __name__ == "__main__":
    main()
