#!/usr/bin/env python3
"""Embeds texts with sentence-transformers, for whoever wants to know whether it reads a checkpoint as Beige does.

usage: sentence_vectors.py MODEL [PROMPT_NAME]

Reads one JSON list of texts from standard input, and prints one JSON list of vectors. It runs in the environment that
`environment flagembedding` makes.
"""

import json
import sys

from sentence_transformers import SentenceTransformer


def main() -> None:
    """Nothing is downloaded: MODEL is a directory."""
    model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
    prompt = sys.argv[2] if len(sys.argv) > 2 else None
    vectors = model.encode(json.load(sys.stdin), prompt_name=prompt)
    json.dump(vectors.tolist(), sys.stdout)


if __name__ == "__main__":
    main()
