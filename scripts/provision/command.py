"""Other programs, run without their chatter: what they said last is repeated when they fail."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .step import Refusal


def run(
    command: Sequence[str],
    failure: str,
    remedy: str,
    *,
    settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs `command` to its end, with `settings` on top of the environment.

    Raises `Refusal`: `failure`, the program's own reason, and `remedy`.
    """
    environment = {**os.environ, **(settings or {})}
    try:
        ran = subprocess.run(
            command,
            check=False,
            env=environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError as error:
        raise Refusal(
            f"{failure} (there is no {command[0]} on PATH): {remedy}"
        ) from error
    if ran.returncode != 0:
        raise Refusal(f"{failure} ({reason(ran.stdout)}): {remedy}")


def reason(output: str) -> str:
    """The last line that a program named an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error:", "e:"))]
    found = (errors or lines or ["it said nothing"])[-1]
    for mark in ("ERROR: ", "error: ", "E: "):
        found = found.removeprefix(mark)
    return found
