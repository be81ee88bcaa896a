"""Programs in the cache: a file named by its version, so that another version is another file, and a link to it."""

import shutil
from pathlib import Path


def is_current(entry: Path, program: Path) -> bool:
    """Whether `program` is there and is what `entry` leads to."""
    return (
        program.is_file()
        and entry.is_symlink()
        and entry.readlink() == Path(program.name)
    )


def put(built: Path, program: Path, entry: Path) -> None:
    """Moves `built` to where `program` belongs, and has `entry` lead there."""
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(built, program)
    entry.unlink(missing_ok=True)
    entry.symlink_to(program.name)
