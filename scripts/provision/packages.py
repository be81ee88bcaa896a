"""System packages, known by what they bring rather than by name: any system that has the parts will do."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .command import run
from .places import Places
from .step import Refusal, Step, say


@dataclass(frozen=True)
class Package:
    """One Debian package, and whether what it brings is here."""

    name: str
    is_here: Callable[[], bool]


def on_path(program: str) -> Callable[[], bool]:
    return lambda: shutil.which(program) is not None


PACKAGES = [
    Package("g++", on_path("g++")),
    Package("make", on_path("make")),
    # Headers only: the wheel's ProcessGroupGloo.hpp includes them and does not bring them.
    Package("libgloo-dev", lambda: Path("/usr/include/gloo/config.h").is_file()),
    # Any etcd will do; a cluster of Beige starts its own process of it.
    Package("etcd-server", on_path("etcd")),
    # Debian's Python has neither pip nor what a virtual environment takes one from.
    Package("python3-venv", lambda: importlib.util.find_spec("ensurepip") is not None),
]


def steps(places: Places) -> list[Step]:
    return [Step("packages", lambda: not missing(), lambda: install(places))]


def missing() -> list[str]:
    return [package.name for package in PACKAGES if not package.is_here()]


def install(places: Places) -> None:
    wanted = missing()
    script = [str(places.checkout / "scripts" / "install-packages"), *wanted]
    if shutil.which("apt-get") is None:
        raise Refusal(
            f"there is no apt-get here: install what Debian calls {' '.join(wanted)}, then run it again"
        )
    if os.geteuid() == 0:
        command = script
    elif shutil.which("sudo"):
        # Without a terminal nobody can type a password.
        command = [
            "sudo",
            *([] if sys.stdin.isatty() else ["--non-interactive"]),
            *script,
        ]
    else:
        raise Refusal(
            f"{', '.join(wanted)} missing: as root run `{shlex.join(script)}`, then run it again"
        )
    say(f"apt-get install {' '.join(wanted)}")
    run(command, f"`{shlex.join(command)}` failed", "mend that, then run it again")
    importlib.invalidate_caches()
    if still := missing():
        raise Refusal(
            f"{', '.join(still)} installed, yet not to be found on PATH: see `scripts/doctor`"
        )
