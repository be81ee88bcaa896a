"""The target that checks share, and the Python modules generated from the public protos."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import grpc
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "proto"
PACKAGE = "beige.v1"


@dataclass(frozen=True)
class Target:
    """What every check is given."""

    channel: grpc.Channel
    model: str
    reranker: str | None


def generate(into: Path) -> None:
    """Generates Python modules from the public protos, and makes them importable."""
    files = sorted(str(path) for path in (PROTOS / "beige" / "v1").glob("*.proto"))
    flags = [
        f"--proto_path={PROTOS}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
    ]
    if protoc.main(["protoc", *flags, *files]) != 0:
        sys.exit("grpc_client.py: the protos do not compile")
    sys.path.insert(0, str(into))


def generated(name: str) -> tuple[ModuleType, ModuleType]:
    """The messages and the stubs that were generated from `name.proto`."""
    messages = importlib.import_module(f"{PACKAGE}.{name}_pb2")
    return messages, importlib.import_module(f"{PACKAGE}.{name}_pb2_grpc")
