"""Where things are: the cache that set-up fills, and the checkout it fills it for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """The two directories everything else is found under."""

    # All that set-up makes; the user may move it with BEIGE_CACHE.
    cache: Path
    # Only two links are made in here, `.libtorch` and `.protoc`.
    checkout: Path
    # A libtorch of the user's own: nothing is downloaded then.
    own_libtorch: Path | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Places":
        checkout = Path(__file__).resolve().parents[2]
        return cls(
            cache_directory(environment), checkout, own_libtorch(environment, checkout)
        )

    @property
    def lean_libtorch(self) -> Path:
        return self.cache / "libtorch"

    @property
    def cuda_libtorch(self) -> Path:
        """Holds `torch/` and `nvidia/` side by side: the libraries find each other by that."""
        return self.cache / "libtorch-cuda"

    @property
    def libtorch(self) -> Path:
        """The prefix that is compiled and linked against."""
        return self.own_libtorch or self.lean_libtorch

    @property
    def link(self) -> Path:
        """What `.cargo/config.toml` names, whichever prefix is in use."""
        return self.checkout / ".libtorch"

    @property
    def protoc(self) -> Path:
        """What `.cargo/config.toml` names as the compiler of .proto files."""
        return self.checkout / ".protoc"

    @property
    def model(self) -> Path:
        return self.cache / "models" / "all-MiniLM-L6-v2"

    @property
    def environments(self) -> Path:
        """Python virtual environments, one directory each."""
        return self.cache / "python"

    @property
    def tools(self) -> Path:
        return self.cache / "bin"

    @property
    def staging(self) -> Path:
        """Unfinished work: on the same file system as its destination, so that a rename ends it."""
        return self.cache / "staging"


def cache_directory(environment: Mapping[str, str]) -> Path:
    """`BEIGE_CACHE`, else `beige` in the user's cache directory."""
    if own := environment.get("BEIGE_CACHE"):
        return Path(own).absolute()
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "beige"
    return Path.home() / ".cache" / "beige"


def own_libtorch(environment: Mapping[str, str], checkout: Path) -> Path | None:
    """`LIBTORCH`, unless it is the link of `checkout`, which cargo hands its children under that name."""
    own = Path(environment.get("LIBTORCH", ""))
    is_link = own.name == ".libtorch" and own.parent.resolve() == checkout
    return None if own == Path() or is_link else own
