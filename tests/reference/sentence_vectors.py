#!/usr/bin/env python3
"""Embeds texts with sentence-transformers, for whoever wants to know whether it reads a checkpoint as Beige does.

usage: sentence_vectors.py MODEL [PROMPT_NAME]
       sentence_vectors.py --scores MODEL

Reads one JSON list of texts from standard input, and prints one JSON list of vectors; or reads one of pairs, and prints
their logits. It runs in the environment that `environment flagembedding` makes.
"""

import json
import sys

from sentence_transformers import CrossEncoder, SentenceTransformer
from torch.nn import Identity


def main() -> None:
    """Nothing is downloaded: MODEL is a directory."""
    if sys.argv[1] == "--scores":
        scorer = CrossEncoder(sys.argv[2], device="cpu", local_files_only=True)
        logits = scorer.predict(json.load(sys.stdin), activation_fn=Identity())
        json.dump(logits.tolist(), sys.stdout)
        return
    model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
    prompt = sys.argv[2] if len(sys.argv) > 2 else None
    vectors = model.encode(json.load(sys.stdin), prompt_name=prompt)
    json.dump(vectors.tolist(), sys.stdout)


if __name__ == "__main__":
    main()
