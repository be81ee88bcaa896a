"""One fine-tuning, by Beige's trainer or by FlagEmbedding, watched from outside; and what a model is worth."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference"
sys.path.insert(0, str(REFERENCE))

import places  # noqa: E402

# Both are told these.
SETTINGS: dict[str, Any] = {
    "train_group_size": 2, "query_max_len": 32, "passage_max_len": 64, "per_device_train_batch_size": 16,
    "temperature": 0.02, "sentence_pooling_method": "mean", "normalize_embeddings": True, "learning_rate": 5e-5,
    "lr_scheduler_type": "linear", "warmup_steps": 10, "weight_decay": 0.01, "max_grad_norm": 1.0,
    "dataloader_drop_last": True,
}  # fmt: skip
# And the reference these: it logs each step, as Beige does, and saves at the end alone, as Beige does in short runs.
QUIET: dict[str, Any] = {
    "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
}  # fmt: skip
MODULE = "FlagEmbedding.finetune.embedder.encoder_only.base"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Task:
    """One training: who, on what, how."""

    # `beige` or `reference`.
    who: str
    data: str
    seed: int
    steps: int
    ranks: int = 1
    threads: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What either is told."""
        return SETTINGS | {"seed": self.seed, "max_steps": self.steps} | self.more

    def samples(self) -> int:
        """Queries that are read after the first step."""
        batch: int = self.settings()["per_device_train_batch_size"]
        return (self.steps - 1) * batch * self.ranks


@dataclass
class Run:
    """What came of it. Times are from the line that tells of the first step to that which tells of the last."""

    task: Task
    model: str
    seconds: float
    # Of all ranks, user and system: it depends less on what else the machine does.
    cpu_seconds: float
    # Of the rank that has most.
    peak_mb: float
    losses: list[float]
    load_before: float
    # Of rank 0's time, exchanges with other ranks and the wait for them; Beige tells of it.
    exchange_share: float
    metrics: dict[str, float] = field(default_factory=dict)

    def samples_per_s(self) -> float:
        """How fast it was."""
        return self.task.samples() / self.seconds

    def cpu_per_step(self) -> float:
        """Seconds."""
        return self.cpu_seconds / (self.task.steps - 1)

    def __str__(self) -> str:
        task = self.task
        return (
            f"{task.who:<9} {task.data} seed {task.seed}, {task.ranks} ranks: {self.samples_per_s():.2f} samples/s, "
            f"{self.cpu_per_step():.2f} s of processor a step, {self.peak_mb:,.0f} MB, loss {self.losses[0]:.4f} to "
            f"{self.losses[-1]:.4f}, load before {self.load_before:.1f}, {self.metrics.get('ndcg_at_10', '')}"
        )


@dataclass(frozen=True)
class Place:
    """What is run, on what, and where all of it is written."""

    trainer: Path
    python: str
    model: Path
    scratch: Path

    def train(self, task: Task, memory_gb: int = 0) -> Run:
        """Runs all ranks to the end, in a directory of their own, with so much memory each if it is not 0."""
        folder = Path(tempfile.mkdtemp(prefix=f"{task.who}-", dir=self.scratch))
        load, port = os.getloadavg()[0], free_port()
        commands = (self.beige if task.who == "beige" else self.reference)(task, folder)
        limit = ["prlimit", f"--data={memory_gb * 10**9}"] if memory_gb else []
        ranks: list[subprocess.Popen[str]] = []
        try:
            for rank, command in enumerate(commands):
                with (folder / f"rank{rank}.log").open("w") as log:
                    out = subprocess.PIPE if rank == 0 else log
                    env = environment(task, rank, port)
                    command = [*limit, *command]
                    if task.who == "beige":
                        command += ["--store-port", str(port)]
                    ranks.append(
                        subprocess.Popen(
                            command, stdout=out, stderr=log, env=env, text=True
                        )
                    )
            losses, seconds, cpu, share = follow(ranks)
            peak = max(peak_bytes(process) for process in ranks)
        finally:
            for process in ranks:
                if process.returncode is None:
                    process.kill()
                    process.wait()
        if any(process.returncode for process in ranks) or len(losses) != task.steps:
            log_end = (folder / "rank0.log").read_text()[-1500:]
            raise RuntimeError(f"{task.who} failed: {log_end}")
        model = folder / "out" / ("model" if task.who == "beige" else "")
        return Run(task, str(model), seconds, cpu, peak / 1e6, losses, load, share)

    def beige(self, task: Task, folder: Path) -> list[list[str]]:
        """The commands of Beige's ranks."""
        job = task.settings() | {
            "kind": "embedder",
            "model": str(self.model),
            "output_dir": str(folder / "out"),
            "train_data": [str(self.scratch / task.data / "train.jsonl")],
        }
        path = folder / "job.json"
        path.write_text(json.dumps(job, indent=1))
        command = [str(self.trainer), "rank", str(path), "--ranks", str(task.ranks)]
        command += ["--threads", str(task.threads)]
        return [[*command, "--rank", str(rank)] for rank in range(task.ranks)]

    def reference(self, task: Task, folder: Path) -> list[list[str]]:
        """The commands of FlagEmbedding's ranks: its own module, as torchrun runs it."""
        told = task.settings() | QUIET | {"data_seed": task.seed}
        told["model_name_or_path"] = self.model
        told["train_data"] = self.scratch / task.data / "train.jsonl"
        if task.ranks > 1:
            told["ddp_backend"] = "gloo"
        command = [self.python, "-u", "-m", MODULE]
        for name, value in told.items():
            command += [f"--{name}", str(value)]
        commands = []
        for rank in range(task.ranks):
            out = folder / ("out" if rank == 0 else f"out{rank}")
            own = ["--output_dir", str(out), "--cache_path", str(folder / f"c{rank}")]
            commands.append(command + own)
        return commands

    def evaluate(self, model: Path, data: str, threads: int) -> dict[str, float]:
        """Measures a directory on a set's held-out queries."""
        command = [str(self.trainer), "evaluate", str(model), "--pooling", "mean"]
        command += ["--max-tokens", "64", "--threads", str(threads)]
        for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
            command += [f"--{name.split('.')[0]}", str(self.scratch / data / name)]
        env = environment(Task("beige", data, 0, 0), 0, 0)
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode != 0:
            raise RuntimeError(f"evaluate: {done.stderr.strip()[-1500:]}")
        found: dict[str, float] = json.loads(done.stdout)
        return found


def model_of_cache(name: str) -> Path:
    """The directory of a model that set-up has put into the cache."""
    return places.model(name)


def environment(task: Task, rank: int, port: int) -> dict[str, str]:
    """Where Beige finds libtorch; what torchrun tells a rank of the reference, and how many threads it has."""
    if task.who == "beige":
        library = places.cache() / "libtorch" / "lib"
        return dict(os.environ) | {"LD_LIBRARY_PATH": str(library)}
    told = {
        "OMP_NUM_THREADS": str(task.threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if task.ranks > 1:
        told |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        told |= {"WORLD_SIZE": str(task.ranks), "MASTER_PORT": str(port)}
        told |= {"MASTER_ADDR": "127.0.0.1"}
    return dict(os.environ) | told


def follow(
    ranks: list[subprocess.Popen[str]],
) -> tuple[list[float], float, float, float]:
    """Losses of rank 0; seconds from the first of them to the last, what all ranks used of the processor, and the share of
    rank 0's time that it says it spent with others."""
    share = 0.0
    losses: list[float] = []
    times: list[float] = []
    used: list[float] = []
    for line in ranks[0].stdout or []:
        if (loss := loss_in(line)) is not None:
            losses.append(loss)
            share = exchange_share_in(line)
            times.append(time.perf_counter())
            used.append(sum(processor_time(process) for process in ranks))
    if not losses:
        return [], 0.0, 0.0, 0.0
    return losses, times[-1] - times[0], used[-1] - used[0], share


def exchange_share_in(line: str) -> float:
    """What a line of Beige's progress tells of exchanges; 0 of others'."""
    told = json.loads(line) if line.startswith('{"') else {}
    return float(told.get("exchange_share", 0.0))


def loss_in(line: str) -> float | None:
    """The loss that a line of progress tells of; nothing where it tells of something else."""
    if line.startswith('{"kind":"step"'):
        return float(json.loads(line)["loss"])
    found = re.match(r"\{'loss': '?([-+.\deE]+)", line)
    return float(found[1]) if found else None


def processor_time(process: subprocess.Popen[str]) -> float:
    """Seconds, user and system."""
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICKS


def peak_bytes(process: subprocess.Popen[str]) -> int:
    """Waits for the end; the most memory that was resident."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
