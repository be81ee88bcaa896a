"""A pip to fetch wheels with, on machines whose Python has none, and environments to install them into."""

import importlib.util
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from .command import run
from .places import Places
from .step import Refusal


def pip_command(places: Places) -> list[str]:
    """The start of a pip command line."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    # Debian's Python comes without; a virtual environment of it has one.
    home = places.environments / "pip"
    if not is_environment(home, []):
        make_environment(home, [])
    return [str(interpreter(home)), "-m", "pip"]


def interpreter(home: Path) -> Path:
    return home / "bin" / "python"


def is_environment(home: Path, requirements: Sequence[str]) -> bool:
    """Whether `home` holds just `requirements`, for a Python that is still there."""
    recipe = home / "recipe"
    return (
        interpreter(home).exists()
        and recipe.is_file()
        and recipe.read_text() == text_of(requirements)
    )


def make_environment(home: Path, requirements: Sequence[str]) -> None:
    """Makes a virtual environment anew. It cannot be moved, hence not staged: the recipe is written last."""
    (home / "recipe").unlink(missing_ok=True)
    try:
        venv.create(home, clear=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise Refusal(
            f"{sys.executable} could not make a virtual environment: install python3-venv, then run it again"
        ) from error
    if requirements:
        command = [
            str(interpreter(home)),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        run(
            [*command, *requirements],
            f"pip could not install {', '.join(requirements)}",
            CHECK_PIP,
        )
    (home / "recipe").write_text(text_of(requirements))


CHECK_PIP = "check the network and `pip config list`, then run it again"


def text_of(requirements: Sequence[str]) -> str:
    return "".join(f"{requirement}\n" for requirement in requirements)
