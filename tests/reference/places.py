"""Where things lie: the checkout, and the cache that set-up fills."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = CHECKOUT / "tests" / "golden"


def cache() -> Path:
    """The cache directory: `BEIGE_CACHE`, else `beige` in the user's cache."""
    if chosen := os.environ.get("BEIGE_CACHE"):
        return Path(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "beige"


def model(name: str) -> Path:
    """The directory of a model that set-up or `checkpoints.py` has put into the cache."""
    return cache() / "models" / name
