"""The tools of `make check`: not needed to build or to run, so only made when asked for by name."""

from pathlib import Path

from .places import Places
from .python import is_environment, make_environment
from .step import Step, say
from .tools import CARGO_DENY

PYTHON_TOOLS = ["mypy==2.4.1", "pytest==9.2.0", "ruff==0.17.6"]


def steps(places: Places) -> list[Step]:
    return [
        Step(
            "python-checks",
            lambda: has_python_checks(places),
            lambda: make_python_checks(places),
        ),
        CARGO_DENY.step(places),
    ]


def python_checks(places: Places) -> Path:
    return places.environments / "checks"


def has_python_checks(places: Places) -> bool:
    return is_environment(python_checks(places), PYTHON_TOOLS)


def make_python_checks(places: Places) -> None:
    say(f"{', '.join(PYTHON_TOOLS)} into {python_checks(places)}")
    make_environment(python_checks(places), PYTHON_TOOLS)
