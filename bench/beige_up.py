"""A Beige of some workers, for as long as it is measured."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_WITHIN = 120.0
STOPPED_WITHIN = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its address, a worker's process, and how long it took to be ready."""

    beige: Path
    address: str
    worker: int
    # From the start of the worker's process to the cluster's own word that all is ready.
    ready_s: float

    def load(
        self, model: str, corpus: Path, callers: int, seconds: float
    ) -> dict[str, Any]:
        """Runs `beige bench` in a closed loop of single texts; its report."""
        command = [
            str(self.beige),
            "bench",
            "--json",
            "--target",
            f"http://{self.address}",
        ]
        command += ["--model", model, "--corpus", str(corpus), "--mode", "closed"]
        command += ["--batch", "1", "--concurrency", str(callers)]
        command += ["--seconds", str(seconds), "--warmup", "3"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"beige bench: {done.stderr.strip()}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def peak_bytes(self) -> int:
        """The most memory that the worker has had resident."""
        for line in Path(f"/proc/{self.worker}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


@contextmanager
def running(beige: Path, model: Path, dtype: str, workers: int) -> Iterator[Cluster]:
    """Brings a cluster up for one model, and down whatever happens."""
    command = [str(beige), "up", "--json", "--workers", str(workers)]
    command += ["--dtype", dtype]
    command += ["--model", f"{model.name}={model}"]
    command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "up.log")
        up = subprocess.Popen(
            [*command, "--log-dir", folder],
            stdout=subprocess.PIPE,
            stderr=said.open("wb"),
            # A group of its own: Ctrl-C reaches this program first, which then ends the group.
            start_new_session=True,
        )
        try:
            line = first_line(up)
            if not line:
                raise RuntimeError(
                    f"beige up: {said.read_text().strip() or 'not ready'}"
                )
            worker = find_worker(up.pid)
            yield Cluster(beige, json.loads(line)["address"], worker, age(worker))
        finally:
            stop(up)


def first_line(up: subprocess.Popen[bytes]) -> bytes:
    """The line that says that all is ready; empty where it does not come."""
    assert up.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(up.stdout, selectors.EVENT_READ)
        return up.stdout.readline() if selector.select(READY_WITHIN) else b""


def find_worker(root: int) -> int:
    """One worker among the children of `beige up`; the others are like it."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == root and name.startswith("beige-worker"):
            return int(entry.parent.name)
    raise RuntimeError("beige up has no worker")


def age(process: int) -> float:
    """Seconds since a process was started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / TICKS


def stop(up: subprocess.Popen[bytes]) -> None:
    """Asks the cluster to end, and after a while makes it."""
    if up.poll() is not None:
        return
    up.send_signal(signal.SIGTERM)
    try:
        up.wait(STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        print("bench: beige up does not end; killing it", file=sys.stderr)
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()
