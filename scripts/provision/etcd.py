"""A current etcd, for the tests of the etcd layer: Debian's is a 3.4, and clusters run newer ones.

Built with Go from `scripts/etcd`, whose go.mod and go.sum pin it. Nothing but those tests needs it.
"""

import re
import shutil
from pathlib import Path

from .command import run
from .places import Places
from .step import Refusal, Step, say
from .wheels import scratch


def steps(places: Places) -> list[Step]:
    return [Step("etcd-current", lambda: is_here(places), lambda: build(places))]


def source(places: Places) -> Path:
    return places.checkout / "scripts" / "etcd"


def version(places: Places) -> str:
    """The one that go.mod pins, such as 3.7.3."""
    text = (source(places) / "go.mod").read_text()
    found = re.search(r"^require go\.etcd\.io/etcd/server/v3 v(\S+)$", text, re.M)
    if found is None:
        raise Refusal(f"{source(places) / 'go.mod'} pins no etcd: report this")
    return found[1]


def program(places: Places) -> Path:
    """Named by its version, so that another version is another file."""
    return places.tools / f"etcd-{version(places)}"


def entry(places: Places) -> Path:
    """The name under which the pinned version is found, also by `make test-etcd`."""
    return places.tools / "etcd-current"


def is_here(places: Places) -> bool:
    link = entry(places)
    return (
        program(places).is_file()
        and link.is_symlink()
        and link.readlink() == Path(program(places).name)
    )


def build(places: Places) -> None:
    if shutil.which("go") is None:
        raise Refusal(
            "there is no go on PATH to build a current etcd with: install Go, then run it again"
        )
    say(f"etcd {version(places)} into {places.tools} (a minute of compiling)")
    with scratch(places) as directory:
        built = directory / "etcd"
        run(
            [
                *["go", "build", "-trimpath", "-buildvcs=false"],
                *["-ldflags=-s -w", f"-o={built}", "."],
            ],
            f"go could not build etcd {version(places)}",
            "check the network, then run it again",
            cwd=source(places),
        )
        places.tools.mkdir(parents=True, exist_ok=True)
        shutil.move(built, program(places))
    entry(places).unlink(missing_ok=True)
    entry(places).symlink_to(program(places).name)
