"""Programs that Go builds, for tests against servers as people run them. Nothing but those tests needs Go."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import versioned
from .command import run
from .places import Places
from .step import Refusal, Step, say
from .wheels import scratch


@dataclass(frozen=True)
class GoProgram:
    """One program at one version, found under one name."""

    # What set-up calls it, and its link in the cache.
    name: str
    # The file that the link leads to: this and the version.
    stem: str
    # The module that it is of.
    module: str
    # A directory of `scripts` whose go.mod pins the module; without it `go install` builds the module itself.
    directory: str | None = None
    # The version, where no go.mod pins it.
    pinned: str | None = None

    def step(self, places: Places) -> Step:
        return Step(self.name, lambda: self.is_here(places), lambda: self.build(places))

    def source(self, places: Places) -> Path:
        return places.checkout / "scripts" / (self.directory or "")

    def version(self, places: Places) -> str:
        """Such as 3.7.3."""
        if self.pinned is not None:
            return self.pinned
        pins = self.source(places) / "go.mod"
        line = rf"^require {re.escape(self.module)} v(\S+)$"
        found = re.search(line, pins.read_text(), re.M)
        if found is None:
            raise Refusal(f"{pins} pins no {self.stem}: report this")
        return found[1]

    def program(self, places: Places) -> Path:
        return places.tools / f"{self.stem}-{self.version(places)}"

    def entry(self, places: Places) -> Path:
        """The name under which the pinned version is found, also by `make`."""
        return places.tools / self.name

    def is_here(self, places: Places) -> bool:
        return versioned.is_current(self.entry(places), self.program(places))

    def build(self, places: Places) -> None:
        if shutil.which("go") is None:
            raise Refusal(
                f"there is no go on PATH to build {self.name} with: install Go, then run it again"
            )
        title = f"{self.stem} {self.version(places)}"
        say(f"{title} into {places.tools} (minutes of compiling)")
        with scratch(places) as directory:
            run(
                self.command(places, directory),
                f"go could not build {title}",
                "check the network, then run it again",
                settings={"GOBIN": str(directory)},
                cwd=self.source(places) if self.directory else directory,
            )
            built = directory / self.stem
            versioned.put(built, self.program(places), self.entry(places))

    def command(self, places: Places, directory: Path) -> Sequence[str]:
        """Leaves the program in `directory`, under its stem."""
        flags = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
        if self.directory is None:
            return ["go", "install", *flags, f"{self.module}@v{self.version(places)}"]
        return ["go", "build", *flags, f"-o={directory / self.stem}", "."]


# The etcd layer's tests meet Debian's 3.4 otherwise, and clusters run newer ones.
ETCD = GoProgram("etcd-current", "etcd", "go.etcd.io/etcd/server/v3", directory="etcd")
# S3 and Google's object store, for the tests of the checkpoint store.
MINIO = GoProgram(
    "minio",
    "minio",
    "github.com/minio/minio",
    pinned="0.0.0-20260212201848-7aac2a2c5b7c",
)
FAKE_GCS = GoProgram(
    "fake-gcs",
    "fake-gcs",
    "github.com/fsouza/fake-gcs-server",
    directory="fake-gcs",
)


def steps(places: Places) -> list[Step]:
    return [program.step(places) for program in (ETCD, MINIO, FAKE_GCS)]
