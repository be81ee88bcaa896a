"""One thing that set-up can find done or do, and how it speaks of it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass


class Refusal(Exception):
    """Set-up cannot go on. The message is one sentence that says what the user can do."""


@dataclass(frozen=True)
class Step:
    """`carry_out` may be killed anywhere: `is_done` then still says no."""

    name: str
    # Called on every `make`: a few stats, never a hash.
    is_done: Callable[[], bool]
    # Raises `Refusal`.
    carry_out: Callable[[], None]


def say(line: str) -> None:
    """One line for each thing that is done, at the moment it begins."""
    print(f"set-up: {line}", file=sys.stderr, flush=True)
