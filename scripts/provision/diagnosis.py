"""What is on this machine, and the command that mends what is not."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from . import checks, libtorch, model, packages
from .golang import ETCD, FAKE_GCS, MINIO
from .places import Places
from .tools import CARGO_DENY, PROTOX

# A release build of the workspace with its dependencies, and the largest crate being compiled.
BUILD_DISK_BYTES = 10_000_000_000
BUILD_MEMORY_BYTES = 3_500_000_000


class State(Enum):
    """What a finding means for a build."""

    OK = "ok"
    # Nothing of `make demo` or `make test` needs it.
    OPTIONAL = "-"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    state: State
    found: str
    # A command, or what to do where no command does it. Empty where nothing is wrong.
    remedy: str = ""


def diagnose(places: Places) -> list[Finding]:
    """Every finding, the ones a build needs first. Changes nothing; reads the whole model once."""
    return [
        *toolchain(places),
        *(package(name, each) for name, each in SYSTEM.items()),
        proto_compiler(places),
        prefix(places),
        *cuda(places),
        default_model(places),
        *check_tools(places),
        processor(),
        memory(),
        disk(places),
    ]


def proto_compiler(places: Places) -> Finding:
    is_here = PROTOX.is_here(places) and places.protoc.exists()
    if is_here:
        return Finding("protox", State.OK, f"{PROTOX.version} at {places.protoc}")
    return Finding("protox", State.MISSING, "not built or not linked", "make setup")


def output(command: Sequence[str]) -> str | None:
    """The first line that `command` prints, if it runs at all."""
    try:
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(ran.stdout.splitlines()), "")


def present(
    name: str, found: str | None, remedy: str, absent: State = State.MISSING
) -> Finding:
    """A finding that is well wherever something was `found`."""
    return (
        Finding(name, absent, "not found", remedy)
        if found is None
        else Finding(name, State.OK, found)
    )


def toolchain(places: Places) -> list[Finding]:
    return [
        rustc(places),
        present("cargo", output(["cargo", "--version"]), "install Rust with rustup"),
        present(
            "clippy",
            output(["cargo", "clippy", "--version"]),
            "rustup component add clippy",
            State.OPTIONAL,
        ),
        present(
            "rustfmt",
            output(["rustfmt", "--version"]),
            "rustup component add rustfmt",
            State.OPTIONAL,
        ),
        Finding("python3", State.OK, f"{sys.version.split()[0]} at {sys.executable}"),
    ]


def rustc(places: Places) -> Finding:
    manifest = tomllib.loads((places.checkout / "Cargo.toml").read_text())
    wanted = str(manifest["workspace"]["package"]["rust-version"])
    found = output(["rustc", "--version"])
    if found is None:
        return Finding(
            "rustc",
            State.MISSING,
            "not found",
            f"install Rust {wanted} or newer with rustup",
        )
    if numbers(found) < numbers(wanted):
        return Finding(
            "rustc",
            State.MISSING,
            f"{found}, older than {wanted}",
            "rustup update stable",
        )
    return Finding("rustc", State.OK, found)


def numbers(text: str) -> tuple[int, ...]:
    """The first dotted version in `text`."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


# The command that tells the version of what a package brings.
SYSTEM = {
    "g++": ["g++", "--version"],
    "make": ["make", "--version"],
    "libgloo-dev": ["dpkg-query", "--show", "libgloo-dev"],
    "etcd-server": ["etcd", "--version"],
    "python3-venv": [
        sys.executable,
        "-c",
        "import ensurepip; print('pip', ensurepip.version())",
    ],
}


def package(name: str, version: Sequence[str]) -> Finding:
    known = next(package for package in packages.PACKAGES if package.name == name)
    if not known.is_here():
        return Finding(
            name,
            State.MISSING,
            "not found",
            f"scripts/setup, or as root scripts/install-packages {name}",
        )
    return Finding(name, State.OK, (output(version) or "present").replace("\t", " "))


def prefix(places: Places) -> Finding:
    place = places.libtorch
    found = f"{libtorch.version_of(place) or 'unknown version'} at {place}"
    if places.own_libtorch:
        if reason := libtorch.unfitness(place):
            return Finding(
                "libtorch",
                State.MISSING,
                f"LIBTORCH={place} {reason}",
                "unset LIBTORCH; scripts/setup",
            )
        found += " (LIBTORCH)"
    elif not libtorch.has_lean(places):
        return Finding(
            "libtorch",
            State.MISSING,
            f"not at {place}",
            "scripts/setup --only libtorch",
        )
    if not libtorch.is_linked(places):
        return Finding(
            "libtorch",
            State.MISSING,
            f"{found}, not linked as {places.link.name}",
            "scripts/setup --only link",
        )
    return Finding("libtorch", State.OK, found)


def cuda(places: Places) -> list[Finding]:
    if not libtorch.has_nvidia_gpu():
        return [
            Finding(
                "GPU",
                State.OPTIONAL,
                "no NVIDIA driver: everything runs on the processor",
            )
        ]
    card = output(
        [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
    )
    gpu = present("GPU", card, "mend NVIDIA's driver: nvidia-smi fails", State.OPTIONAL)
    if places.own_libtorch:
        return [gpu]
    half = str(places.cuda_libtorch) if libtorch.has_cuda(places) else None
    return [gpu, present("libtorch-cuda", half, "scripts/setup --only libtorch-cuda")]


def default_model(places: Places) -> Finding:
    if not model.has_model(places.model):
        return Finding(
            "model",
            State.MISSING,
            f"not at {places.model}",
            "scripts/setup --only model",
        )
    if wrong := model.wrong_files(places.model):
        found = f"{', '.join(wrong)} in {places.model} not as published"
        return Finding(
            "model",
            State.MISSING,
            found,
            f"rm -r {places.model}; scripts/setup --only model",
        )
    return Finding("model", State.OK, f"{places.model}, every sha256 as published")


def check_tools(places: Places) -> list[Finding]:
    deny = CARGO_DENY.version if CARGO_DENY.is_here(places) else None
    tools = ", ".join(checks.PYTHON_TOOLS) if checks.has_python_checks(places) else None
    newer = ETCD.version(places) if ETCD.is_here(places) else None
    stores = [it.name for it in (MINIO, FAKE_GCS) if it.is_here(places)]
    return [
        present("cargo-deny", deny, "scripts/setup --also cargo-deny", State.OPTIONAL),
        present(
            "python checks", tools, "scripts/setup --also python-checks", State.OPTIONAL
        ),
        present(
            "current etcd",
            newer,
            "install Go; scripts/setup --also etcd-current",
            State.OPTIONAL,
        ),
        present(
            "object stores",
            ", ".join(stores) or None,
            "install Go; scripts/setup --also minio,fake-gcs",
            State.OPTIONAL,
        ),
    ]


def processor() -> Finding:
    """The instruction sets are named because dtypes depend on them."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    sets = sorted(known & set(flags[1].split())) if flags else []
    cores = len(os.sched_getaffinity(0))
    found = f"{cores} cores, {name[1] if name else 'unknown processor'} ({', '.join(sets) or 'no AVX2'})"
    return Finding("processor", State.OK, found)


def memory() -> Finding:
    text = Path("/proc/meminfo").read_text()
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    size = int(available[1]) * 1024 if available else 0
    found = f"{size / 1e9:.1f} GB available"
    if size < BUILD_MEMORY_BYTES:
        return Finding("memory", State.OPTIONAL, found, "build with CARGO_BUILD_JOBS=1")
    return Finding("memory", State.OK, found)


def disk(places: Places) -> Finding:
    """Of the checkout, where the build goes; set-up looks at the cache's own disk before it fills it."""
    free = shutil.disk_usage(places.checkout).free
    found = f"{free / 1e9:.1f} GB free for {places.checkout}"
    if free < BUILD_DISK_BYTES:
        return Finding(
            "disk",
            State.OPTIONAL,
            found,
            "make room, or set CARGO_TARGET_DIR to another disk",
        )
    return Finding("disk", State.OK, found)
