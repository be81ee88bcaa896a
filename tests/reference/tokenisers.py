"""Small tokenizers of the three kinds, trained on the sentences here, written as published ones are.

They need the reference environment (`tokenizers`, `sentencepiece`); their training is deterministic.
"""

import base64
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from texts import CODE, sentences

# A few rules for the character map that SentencePiece compiles into its models (the usual one, of all of
# NFKC, takes 300 kB): full-width forms, ligatures, spaces, and what is left out.
RULES = {chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)} | {
    "\ufb00": "ff",
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\u2122": "TM",
    "\u33a1": "m2",
    "\u2460": "1",
    "\u2461": "2",
    "\u2462": "3",
    "e\u0301": "\u00e9",
    "\u0301": "",
    "\ufeff": "",
    "\u200b": " ",
    "\u00a0": " ",
    "\u3000": " ",
    "\t": " ",
    "\n": " ",
    "\r": " ",
    "\u0007": "",
}

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def material() -> list[str]:
    """What tokenizers are trained on."""
    return sentences() + CODE


def word_piece(size: int, *, lowercase: bool) -> Tokenizer:
    """A tokenizer like BERT's, of `size` tokens."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in material():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts.update(parts(word))
    # The library's own trainer breaks ties at random.
    singles = sorted(part for part in counts if len(part.removeprefix("##")) == 1)
    others = sorted(
        counts.keys() - set(singles), key=lambda part: (-counts[part] * len(part), part)
    )
    vocabulary = (BERT_SPECIAL + singles + others)[:size]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(BERT_SPECIAL)
    return tokenizer


def parts(word: str) -> Iterator[str]:
    """Every piece of the word, as WordPiece writes it."""
    for start, end in combinations(range(len(word) + 1), 2):
        yield ("##" if start else "") + word[start:end]


def byte_pairs(size: int) -> Tokenizer:
    """A tokenizer like RoBERTa's, over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=ROBERTA_SPECIAL,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(material(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def unigram(size: int) -> dict[str, Any]:
    """A `tokenizer.json` like XLM-RoBERTa's, of `size` tokens, out of a SentencePiece model."""
    model = trained_pieces(size - 2)
    # XLM-RoBERTa numbers its own four first, then the pieces after SentencePiece's own three.
    pieces = [[token, 0.0] for token in ROBERTA_SPECIAL[:4]]
    pieces += [[piece.piece, piece.score] for piece in model.pieces[3:]]
    pieces.append(["<mask>", 0.0])
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    spaces = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(pieces, token) for token in ROBERTA_SPECIAL],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, spaces],
        },
        "post_processor": roberta_template(),
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "vocab": pieces,
            "byte_fallback": False,
        },
    }


def trained_pieces(size: int) -> Any:
    """A SentencePiece model of `size` pieces, its own three included."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, rules = Path(folder, "corpus.txt"), Path(folder, "rules.tsv")
        corpus.write_text("\n".join(text.replace("\n", " ") for text in material()))
        rules.write_text(
            "".join(f"{code(old)}\t{code(new)}\n" for old, new in RULES.items())
        )
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(Path(folder, "small")),
            vocab_size=size,
            character_coverage=0.995,
            normalization_rule_tsv=str(rules),
            num_threads=1,
            minloglevel=2,
        )
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(Path(folder, "small.model").read_bytes())
        return model


def code(text: str) -> str:
    """The text by its code points, as rules spell it."""
    return " ".join(f"{ord(char):X}" for char in text)


def added(pieces: list[list[Any]], token: str) -> dict[str, Any]:
    """A special token's entry; only the mask swallows the space before it."""
    number = next(index for index, piece in enumerate(pieces) if piece[0] == token)
    flags = {
        "single_word": False,
        "lstrip": token == "<mask>",
        "rstrip": False,
        "normalized": False,
    }
    return {"id": number, "content": token, **flags, "special": True}


def roberta_template() -> dict[str, Any]:
    """`<s> A </s>` and `<s> A </s></s> B </s>`, all of type 0."""
    first, last = special("<s>"), special("</s>")
    one, two = sequence("A"), sequence("B")
    return {
        "type": "TemplateProcessing",
        "single": [first, one, last],
        "pair": [first, one, last, last, two, last],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in [("<s>", 0), ("</s>", 2)]
        },
    }


def special(token: str) -> dict[str, Any]:
    """A special token in a template."""
    return {"SpecialToken": {"id": token, "type_id": 0}}


def sequence(name: str) -> dict[str, Any]:
    """A text in a template."""
    return {"Sequence": {"id": name, "type_id": 0}}


def pretty(value: object) -> str:
    """JSON as it is kept in a repository."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
