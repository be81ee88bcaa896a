"""The texts that golden files are made for: all written or put together here, always the same.

Plain sentences come from `sentences.tsv`; this module adds what breaks tokenizers and windows.
"""

import random
from pathlib import Path

SENTENCES = Path(__file__).resolve().parent / "sentences.tsv"

CODE = [
    'fn main() { println!("{}", (1..=10).sum::<u32>()); }',
    "let Some(batch) = queue.pop_front() else { return Ok(()) };",
    "impl<T: Send + 'static> Drop for Lease<T> {\n    fn drop(&mut self) {}\n}",
    "def mean(xs: list[float]) -> float:\n    return sum(xs) / len(xs)\n",
    'if __name__ == "__main__":\n\tmain()',
    "SELECT id, COUNT(*) AS n FROM loans WHERE due < NOW() GROUP BY id HAVING n > 3;",
    "for (int i = 0; i < n; ++i) { y[i] += a * x[i]; }",
    "#include <vector>\nstd::vector<std::pair<int, float>> best(std::size_t k);",
    "git log --oneline --since='2 weeks ago' | head -n 20",
    'curl -sS -X POST localhost:8080/v1/embeddings -d \'{"input": ["a", "b"]}\'',
    '<p class="note">Mind the <em>gap</em> &amp; the step.</p>',
    '{"name": "worker-3", "queued": 0, "models": [null, true, 1.5e-3]}',
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: teapot\n",
    "^(?:[a-z0-9_]+\\.)*[a-z]{2,}$",
    "const ids = rows.map(({ id }) => id ?? -1).filter(x => x >= 0);",
    "mov rax, [rbp-0x18] ; add rax, 0x10 ; ret",
    "\\frac{1}{n}\\sum_{i=1}^{n} x_i^2 \\leq \\epsilon",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case dotted.case",
]

# One idea each: the comment says which, where it cannot be seen.
ODD = [
    "a",
    "Z",
    "7",
    "?",
    "é",
    "茶",
    "あ",
    "ب",
    "ß",
    "İ",
    "ſ",
    "\u00e9clair e\u0301clair",  # composed and decomposed
    "Z\u0351\u0346a\u0334\u0301l\u0335g\u0336o\u0337",  # stacked combining marks
    "\u0e01\u0e33 \u0915\u094d\u0937 \u0b95\u0bca",  # vowels that recombine
    "\u1100\u1161\u11a8 \uac01",  # Hangul by letters and composed
    "\ufb01ne \ufb02our \u2460\u2461\u2462 \uff26\uff35\uff2c\uff2c \u33a1 \u2122",  # compatibility forms
    "\U0001d4d1\U0001d4ee\U0001d4f2\U0001d4f0\U0001d4ee \U00020000\U0002a6d6",  # beyond the first plane
    "😀",
    "🚀🚀🚀 to the moon",
    "👩\u200d🚀 and 👨\u200d👩\u200d👧\u200d👦 wave 👋🏽",  # joined and tinted emoji
    "🇫🇷 🇯🇵 🇧🇷 🏴\u200d☠\ufe0f",
    "❤\ufe0f ✅ ☕ ♞ ∞ ≠ ½ € ₿",
    "soft\u00adhyphen zero\u200bwidth\u200cnon\u200djoiner\ufeffmark",
    "left \u202eright to left\u202c left again",
    "tab\tnew line\ncarriage\r\nreturn vertical\vform\ffeed",
    "  leading and trailing  ",
    "\n\n\tindented once\n\n\n\tand again\n",
    "many     spaces          between      words",
    "no\u00a0break thin\u2009space ideographic\u3000space line\u2028separator en\u2002quad",
    "bell\u0007 null\u0000 escape\u001b[31mred\u001b[0m delete\u007f next\u0085line",
    "replacement \ufffd and private \ue000 and unassigned \u0378 characters",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <pad> <unk> <mask>",  # spelt like special tokens
    "before[SEP]after <mask>in the middle",
    "##ing ##ed ▁under Ġbar",
    "https://example.org/shelves/7?sort=title&page=2#top",
    "ftp://files.example.net/~ada/notes-(final).tar.gz",
    "write to ada.lovelace+library@example.com or ring +44 (0)20 7946 0018",
    "/usr/share/doc/README.md C:\\Users\\Ada\\notes.txt ~/.config",
    "192.168.0.1 fe80::1ff:fe23:4567:890a 00:1b:44:11:3a:b7",
    "3.14159 -273.15 6.022e23 1,234,567.89 0x1F 0b1010 1/3 50% $19.99 №5 #42",
    "2024-02-29T23:59:60Z 12/31/99 7:05 pm",
    "1234567890123456789012345678901234567890",
    "WHY IS THIS IN CAPITALS, AND why is This In Title Case?",
    "iPhone eBay McIntyre O'Neill d'Artagnan rock'n'roll don't won't it's",
    "well-known state-of-the-art re-\nentry e-mail",
    "Wait... what?! No -- yes -- maybe; (perhaps) [sic] {ok} <hm> \"quoted\" 'single' «guillemets» „low“ ‘curly’ “double”",
    "!!!???...,,,;;;:::---___***",
    "....................................................................",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 99,
    "x" * 100,  # the longest word that WordPiece takes apart
    "x" * 101,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis floccinaucinihilipilification",
    "ἐν ἀρχῇ ἦν ὁ λόγος",
    "Ærøskøbing Łódź Čačak Þórshöfn Ağrı Đakovo",
    "東京tower北京duck서울station",
    "今天weather很好,let's去公园。",
    "英語とEnglishとコード fn main() を混ぜた文。",
    "مرحبا world 123 ١٢٣ سلام",
    "שלום 42 world",
    "प्रश्न क्या है? उत्तर: 42",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "\u1e9e \u0149 \u01f0 \u0390 \u1fb7 \ua64a",  # lower-case forms of other lengths
    "ΣΊΣΥΦΟΣ ΟΔΟΣ",  # final sigma
    "q\u0307\u0323 q\u0323\u0307",  # marks in two orders
]


def sentences(*languages: str) -> list[str]:
    """The plain sentences in these languages, or in all, in the order of the file."""
    rows = [line.split("\t") for line in SENTENCES.read_text("utf-8").splitlines()]
    return [text for language, text in rows if not languages or language in languages]


def statements(seed: int, count: int) -> list[str]:
    """Short English statements out of a small grammar."""
    rng = random.Random(seed)
    who = [
        "The gardener",
        "A clerk",
        "My aunt",
        "The third worker",
        "Every gateway",
        "An old goat",
        "Nobody",
    ]
    does = [
        "repairs",
        "counts",
        "forgets",
        "hides",
        "returns",
        "measures",
        "politely refuses",
    ]
    what = [
        "the ladder",
        "two batches",
        "a bag of salt",
        "the longest queue",
        "seven keys",
        "the second map",
    ]
    when = [
        "before lunch",
        "in the rain",
        "without a sound",
        "twice a year",
        "when the tide is out",
        "at 03:45",
    ]
    parts = [who, does, what, when]
    return [" ".join(rng.choice(part) for part in parts) + "." for _ in range(count)]


def paragraphs(seed: int, lengths: list[int], *languages: str) -> list[str]:
    """One text of so many sentences for each length, drawn without regard to sense."""
    rng = random.Random(seed)
    pool = sentences(*languages)
    return [" ".join(rng.choice(pool) for _ in range(length)) for length in lengths]


def at_the_window(window: int) -> list[str]:
    """Texts of one-token words that end just below, at and above a window of BERT's."""
    return [" ".join(["the"] * words) for words in range(window - 4, window + 1)]


def for_minilm() -> list[str]:
    """At least 300 texts, of one to some thousands of tokens."""
    texts = sentences() + CODE + ODD + statements(1, 48)
    texts += paragraphs(2, [2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 12, 14, 16], "en")
    texts += paragraphs(3, [2, 3, 4, 5, 6, 8, 10, 12], "zh", "ja", "en")
    texts += paragraphs(4, [3, 5, 9], "ar", "he", "ru", "hi", "th", "ko")
    texts += paragraphs(5, [24, 40, 200], "en") + paragraphs(6, [20, 60])
    texts += at_the_window(256)
    return texts


def for_small_models(window: int) -> list[str]:
    """About 40 texts of mixed lengths, a few of them longer than `window` tokens."""
    rng = random.Random(window)
    texts = rng.sample(sentences(), 16) + rng.sample(CODE, 4) + rng.sample(ODD, 12)
    texts += paragraphs(7, [2, 2, 3, 4], "en", "de", "zh") + paragraphs(8, [9, 40])
    texts += ["a", *at_the_window(window)]
    return texts


def pairs(window: int) -> list[tuple[str, str]]:
    """About 40 pairs of a question and a document, a few longer than `window` tokens together."""
    rng = random.Random(window + 1)
    questions = [text for text in sentences() if text[-1] in "?？؟"]
    documents = (
        sentences() + CODE + ODD + paragraphs(9, [3] * 20 + [12] * 20 + [60] * 4)
    )
    return [(rng.choice(questions), rng.choice(documents)) for _ in range(36)] + [
        ("a", "b"),
        ("why", "why"),
        ("the same on both sides", "the same on both sides"),
        (questions[0], " ".join(["the"] * window)),
    ]
