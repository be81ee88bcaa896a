"""Drives a running cluster as a stranger would: with Python's own gRPC, by code generated from the protos.

usage: grpc_client.py --target HOST:PORT --model NAME [--reranker NAME]

NAME is an embedding model, the one after `--reranker` a cross-encoder. Prints a line per check; exits with 1 where
one failed. Runs in the `client` environment; the checks are in `checks_*.py`.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from grpc_stubs import Target, generate


def checks(target: Target) -> Iterator[tuple[str, Callable[[Target], None]]]:
    """The checks that suit the models at hand, by name, in the order in which they are written."""
    prefixes = ["check_"] + ["cross_check_"] * bool(target.reranker)
    for module in ["checks_serving", "checks_embedding"]:
        for name, value in vars(importlib.import_module(module)).items():
            for prefix in prefixes:
                if name.startswith(prefix):
                    yield name.removeprefix(prefix).replace("_", " "), value


def run(target: Target) -> bool:
    """Runs every check; whether all passed."""
    passed = True
    for name, check in checks(target):
        try:
            check(target)
        except Exception as error:
            passed = False
            why = error.details() if isinstance(error, grpc.RpcError) else error
            print(f"FAIL {name}: {type(error).__name__}: {why}", flush=True)
        else:
            print(f"ok   {name}", flush=True)
    return passed


def main() -> None:
    """Parses the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", required=True, help="host:port of a gateway")
    parser.add_argument("--model", required=True, help="an embedding model")
    parser.add_argument("--reranker", help="a cross-encoder")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        grpc.insecure_channel(arguments.target) as channel,
    ):
        generate(Path(folder))
        grpc.channel_ready_future(channel).result(timeout=30)
        target = Target(channel, arguments.model, arguments.reranker)
        sys.exit(0 if run(target) else 1)


if __name__ == "__main__":
    main()
