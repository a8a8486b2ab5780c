"""The server under load: random prompts on the nano backbone, many clients, answers compared with those of the predictor.

    python -m benchmarks.serve --json benchmarks/results/serve/lines.jsonl

Cases: one task alone; many tasks mixed, while tasks are added and taken away; 1,000 tasks in memory. A line says for each: requests a
second, median and 99th percentile of their milliseconds, wrong and lost answers, the server's memory before and after, and how busy the
machine was.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import mpt_jax
from benchmarks.alternate import ENVIRONMENT, machine
from mpt_jax.checkpoint import Checkpoints
from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, fingerprint_of
from mpt_jax.model.formats import prompt_writers, prompts

LENGTH, WIDTH = 20, 192
WORDS = "the film was a long dull joke about bright people who never quite say what they mean to each other".split()


def write_run(folder: Path, names: list[str], seed: int, prompts_NPD: np.ndarray | None = None) -> None:
    """A run folder of prompts on nano, random ones if none are given."""
    runs = [{"task": name, "seed": 0, "group": n, "learning_rate": 0.3, "factor_learning_rate": 0.3} for n, name in enumerate(names)]
    settings = Settings(
        TrainSettings("teacher", str(folder), train_steps=1), BackboneSettings("nano"), PromptSettings(length=LENGTH),
        data=DataSettings(feature_lengths={"inputs": 64, "targets": 8}),
    )  # fmt: skip
    backbone = {"name": "nano", "fingerprint": fingerprint_of(formats.read_backbone(backbone_folder("nano"))[1]), "parameters": 1}
    described = {"stage": "teacher", "method": "prompt", "tasks": names, "runs": runs, "backbone": backbone}
    described["settings"] = settings.describe()
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(described))
    random_NPD = np.random.default_rng(seed).normal(size=(len(names), LENGTH, WIDTH)).astype(np.float32)
    shared = random_NPD if prompts_NPD is None else prompts_NPD
    checkpoints = Checkpoints(folder, runs=runs)
    state = {"step": np.asarray(1), "trainable": {"bank/shared": shared}, "opt_state": ()}
    checkpoints.save(1, state, None, {"step": 1, "has_best": False})
    checkpoints.close()


class Client(threading.Thread):
    """Sends its queries one by one over one connection."""

    def __init__(self, port: int, queries: list[tuple[int, str, str]], results: dict[int, list[str]], times: list[float]):
        super().__init__()
        self.port, self.queries, self.results, self.times = port, queries, results, times

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        for number, text, task in self.queries:
            start = time.perf_counter()
            connection.request("POST", "/v1/predict", json.dumps({"queries": [{"text": text, "task": task}]}).encode())
            response = connection.getresponse()
            found = json.loads(response.read())
            self.times.append(time.perf_counter() - start)
            self.results.setdefault(number, []).append(found["answers"][0]["text"] if response.status == 200 else found["error"])


def call(port: int, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, None if body is None else json.dumps(body).encode())
    response = connection.getresponse()
    return response.status, response.read()


def memory(process: subprocess.Popen) -> float:
    """MiB that a process holds."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def load(name: str, port: int, process, asked: list[tuple[str, str]], expected: list[str], clients: int, changes: int = 0) -> dict:
    """A case: so many queries from so many clients, and tasks added and taken away meanwhile."""
    results: dict[int, list[str]] = {}
    times: list[float] = []
    rows = [(number, text, task) for number, (text, task) in enumerate(asked)]
    before, started = memory(process), time.perf_counter()
    threads = [Client(port, rows[first::clients], results, times) for first in range(clients)]
    for thread in threads:
        thread.start()
    made = 0
    while made < changes:
        assert call(port, "PUT", "/v1/tasks", {"path": "one.npz", "name": "passing"})[0] == 201
        assert call(port, "DELETE", "/v1/tasks/passing/extra")[0] == 204
        made += 1
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    wrong = sum(results.get(number, [None])[0] != text for number, text in enumerate(expected))
    cuts = statistics.quantiles(times, n=100)
    return {
        "case": name, "requests": len(rows), "clients": clients, "seconds": round(seconds, 2),
        "requests_per_second": round(len(rows) / seconds, 1),
        "median_ms": round(1000 * cuts[49], 1), "p99_ms": round(1000 * cuts[98], 1), "wrong": wrong,
        "lost": sum(number not in results for number in range(len(rows))), "doubled": sum(len(found) > 1 for found in results.values()),
        "tasks_added_and_removed": made, "memory_mib": [round(before), round(memory(process))],
    }  # fmt: skip


def queries(count: int, names: list[str], seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [(" ".join(rng.choice(WORDS, rng.integers(3, 30))), names[n % len(names)]) for n in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="file that gets a JSON line")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--more", type=int, default=980, help="tasks that are added for the last case")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mpt_serve_"))
    names = [f"task{n}" for n in range(arguments.tasks)]
    write_run(folder / "run", names, 0)
    rng = np.random.default_rng(1)
    root = folder / "root"
    for name, count in (("one", 1), ("more", arguments.more)):
        made = rng.normal(size=(count, LENGTH, WIDTH)).astype(np.float32)
        labels = ["extra"] if count == 1 else [f"more{n}" for n in range(count)]
        prompt_writers.write("npz", str(root / name), prompts.plain(made, labels, {"source": name}))
    few = max(arguments.requests // 5, 1)
    alone = queries(few, names[:1], 0)
    cases = {"one task": alone, "mixed": queries(arguments.requests, names, 1), "many in memory": alone}
    predictor = mpt_jax.load(str(folder / "run"))
    answers = {name: [one.text for one in predictor.answer([mpt_jax.Query(*query) for query in rows])] for name, rows in cases.items()}
    command = [sys.executable, "-m", "mpt_jax", "serve", "--run", str(folder / "run"), "--root", str(root), "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
    port = int(next(line for line in process.stderr if line.startswith("ready")).rsplit(":", 1)[1])
    found = []
    for name, rows in cases.items():
        if name == "many in memory":
            assert call(port, "PUT", "/v1/tasks", {"path": "more.npz"})[0] == 201
        busy = os.getloadavg()[0]
        case = load(name, port, process, rows, answers[name], arguments.clients, 100 if name == "mixed" else 0)
        found.append({**case, "load_average": [round(busy, 1), round(os.getloadavg()[0], 1)]})
        print(json.dumps(found[-1]), flush=True)
    process.send_signal(signal.SIGTERM)
    line = {"benchmark": "serve", "backbone": "nano", "tasks": arguments.tasks, "exit_code": process.wait(120), "cases": found}
    line["machine"] = machine(2)
    Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.json, "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
