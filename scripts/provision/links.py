"""Links in the checkout to what set-up made: `.cargo/config.toml` names them by paths relative to itself."""

import os
from pathlib import Path

from .step import Refusal, Step, say


def points(link: Path, target: Path) -> bool:
    """Whether `link` leads to `target`, by that very path."""
    return link.is_symlink() and link.readlink() == target


def point(link: Path, target: Path) -> None:
    """Makes `link` lead to `target`, at once, whatever link was there before."""
    say(f"link {link} to {target}")
    new = link.with_name(f"{link.name}.{os.getpid()}")
    new.symlink_to(target)
    try:
        new.replace(link)
    except OSError as error:
        new.unlink()
        raise Refusal(f"{link} is in the way: remove it, then run it again") from error


def step(name: str, link: Path, target: Path) -> Step:
    return Step(name, lambda: points(link, target), lambda: point(link, target))
