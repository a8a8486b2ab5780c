"""The server under load: nano with random prompts, many clients, each answer compared with that of ``mpt_jax.load``.

    python -m benchmarks.serve --json benchmarks/results/serve.jsonl

One task alone and many mixed take turns; then many mixed while tasks are added and taken away; then one task with 1,000 in memory.
``--peer``: then many mixed with transformers.generate behind the same queue (extra `parity`). Server and clients share the cores.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import mpt_jax
from benchmarks import alternate
from mpt_jax.checkpoint import Checkpoints
from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.convert import convert
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, fingerprint_of
from mpt_jax.model.formats import prompt_writers, prompts

LENGTH = 20  # prompt vectors
LENGTHS = {"inputs": 64, "targets": 8}
WORDS = "the film was a long dull joke about bright people who never quite say what they mean to each other".split()
Asked = tuple[str, str]  # text, task


def write_run(folder: Path, backbone: str, tasks: Sequence[str], seed: int = 0, vocabulary: str = "") -> None:
    """A run folder of prompts, rows of the backbone's embedding, as training starts from them."""
    config, arrays, _ = formats.read_backbone(backbone_folder(backbone))
    place = {"name": backbone, "fingerprint": fingerprint_of(arrays), "parameters": config.num_parameters()}
    runs = [{"task": task, "seed": 0, "group": n, "learning_rate": 0.3, "factor_learning_rate": 0.3} for n, task in enumerate(tasks)]
    settings = Settings(
        TrainSettings("teacher", str(folder), train_steps=1), BackboneSettings(backbone, vocabulary), PromptSettings(length=LENGTH),
        data=DataSettings(feature_lengths=LENGTHS),
    )  # fmt: skip
    run = {"stage": "teacher", "method": "prompt", "tasks": list(tasks), "runs": runs, "backbone": place, "settings": settings.describe()}
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    state = {"step": np.asarray(1), "trainable": {"bank/shared": drawn(arrays, len(tasks), seed)}, "opt_state": ()}
    checkpoints = Checkpoints(folder, runs=runs)
    checkpoints.save(1, state, None, {"step": 1, "has_best": False})
    checkpoints.close()


def drawn(arrays, count: int, seed: int) -> np.ndarray:
    """Prompts (N, P, D) of rows of the embedding."""
    table_VD = arrays["token_embedder/embedding"].load(np.float32, (slice(0, 5000), slice(0, arrays["token_embedder/embedding"].shape[1])))
    return table_VD[np.random.default_rng(seed).integers(0, len(table_VD), (count, LENGTH))]


def queries(count: int, tasks: Sequence[str], seed: int) -> list[Asked]:
    """Texts of 3 to 29 words, each for the next task."""
    rng = np.random.default_rng(seed)
    return [(" ".join(rng.choice(WORDS, rng.integers(3, 30))), tasks[n % len(tasks)]) for n in range(count)]


class Client(threading.Thread):
    """Sends its queries one by one over one connection. found: (number, answer) of each response; seconds: of each request."""

    def __init__(self, port: int, numbered: Sequence[tuple[int, Asked]]):
        super().__init__()
        self.port, self.numbered = port, numbered
        self.found: list[tuple[int, str]] = []
        self.seconds: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        for number, (text, task) in self.numbered:
            start = time.perf_counter()
            connection.request("POST", "/v1/predict", json.dumps({"queries": [{"text": text, "task": task}]}).encode())
            answer = json.loads(connection.getresponse().read())
            self.seconds.append(time.perf_counter() - start)
            self.found += [(number, one["text"]) for one in answer.get("answers", [])]


class Server:
    """``mpt-jax serve``, or what behaves like it, in a process of its own."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", *arguments]
        self.process = subprocess.Popen(command, env={**os.environ, **alternate.ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
        line = next((line for line in self.process.stderr if line.startswith("ready")), "")
        if not line:
            raise SystemExit(f"the server has ended with {self.process.wait()}")
        self.port = int(line.rsplit(":", 1)[1])

    def call(self, method: str, path: str, body: dict | None = None) -> None:
        """A request that must be answered with 2.."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {text.decode()}")

    def memory_mb(self) -> int:
        """Memory that it holds, in 2^20 bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024

    def stop(self) -> str:
        """Its last line, and its exit code."""
        self.process.terminate()
        return f"{self.process.stderr.read().splitlines()[-1]}; exit code {self.process.wait(120)}"


def measured(server: Server, asked: Sequence[Asked], expected: Sequence[str], clients: int, changes: int = 0) -> dict:
    """All queries from so many clients at once, and what came back; ``changes``: tasks added and taken away meanwhile."""
    numbered, start = list(enumerate(asked)), time.perf_counter()
    threads = [Client(server.port, numbered[first::clients]) for first in range(clients)]
    for thread in threads:
        thread.start()
    for turn in range(changes):
        server.call("PUT", "/v1/tasks", {"path": "one.npz", "name": f"passing{turn}"})
        server.call("DELETE", f"/v1/tasks/passing{turn}/extra")
    changing = any(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    found = [one for thread in threads for one in thread.found]
    times = statistics.quantiles([second for thread in threads for second in thread.seconds], n=100)
    numbers = {number for number, _ in found}
    return {
        "requests": len(asked), "per second": round(len(asked) / seconds, 1), "median ms": round(1000 * times[49], 1),
        "p99 ms": round(1000 * times[98], 1), "wrong": sum(text != expected[number] for number, text in found),
        "lost": len(asked) - len(numbers), "doubled": len(found) - len(numbers),
        "changes": f"{changes}, all under load" if changes and changing else changes, "server MB": server.memory_mb(),
    }  # fmt: skip


def cases(server: Server, arguments: argparse.Namespace, tasks: Sequence[str], answers) -> Iterator[tuple[str, dict]]:
    """Each case with its numbers."""
    many, few = arguments.requests, arguments.requests // 10
    one, mixed, long = queries(few, tasks[:1], 0), queries(few, tasks, 0), queries(many, tasks, 1)
    expected = [answers(rows) for rows in (one, mixed, long)]
    for _ in range(2):
        yield "one task", measured(server, one, expected[0], arguments.clients)
        yield f"{len(tasks)} tasks mixed", measured(server, mixed, expected[1], arguments.clients)
    yield f"{len(tasks)} tasks mixed, tasks come and go", measured(server, long, expected[2], arguments.clients, arguments.changes)
    yield "one task", measured(server, one, expected[0], arguments.clients)
    server.call("PUT", "/v1/tasks", {"path": "more.npz"})
    yield f"one task, {arguments.memory:,} in memory", measured(server, one, expected[0], arguments.clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="file that gets a JSON line")
    parser.add_argument("--peer", action="store_true", help="transformers, too")
    parser.add_argument("--small", action="store_true", help="a few requests: shows that the benchmark works")
    numbers = {"requests": 10_000, "clients": 64, "tasks": 20, "changes": 100, "memory": 1000}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.requests, arguments.clients, arguments.changes, arguments.memory = 160, 8, 5, 30
    with tempfile.TemporaryDirectory(prefix="mpt_serve_") as name:
        folder = Path(name)
        tasks = [f"task{n}" for n in range(arguments.tasks)]
        write_run(folder / "run", "nano", tasks)
        arrays = formats.read_backbone(backbone_folder("nano"))[1]
        for file, labels in (("one", ["extra"]), ("more", [f"more{n}" for n in range(arguments.memory - arguments.tasks)])):
            held = prompts.plain(drawn(arrays, len(labels), 1), labels, {})
            prompt_writers.write("npz", str(folder / "root" / file), held)
        predictor = mpt_jax.load(folder / "run")

        def answers(rows: Sequence[Asked]) -> list[str]:
            return [answer.text for answer in predictor.answer([mpt_jax.Query(*row) for row in rows])]

        server = Server("mpt_jax", "serve", "--run", str(folder / "run"), "--root", str(folder / "root"), "--port", "0")
        busy, start = os.getloadavg()[0], time.perf_counter()
        rows = []
        for case, found in cases(server, arguments, tasks, answers):
            rows.append({"case": case, **found})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        ended = [server.stop()]
        if arguments.peer:
            convert(str(folder / "run"), "tokens", str(folder / "hf"))
            peer = Server("benchmarks.serve_peer", str(folder / "run"), str(folder / "hf"))
            mixed = queries(arguments.requests // 10, tasks, 0)
            rows.append({"case": f"{len(tasks)} tasks mixed, transformers", **measured(peer, mixed, answers(mixed), arguments.clients)})
            ended.append(peer.stop())
        line = {
            "benchmark": "serve", "case": f"nano, {arguments.clients} clients, batches of at most 32", "rows": rows, "ended": ended,
            "load before": round(busy, 1), "seconds": round(time.perf_counter() - start, 1), "machine": alternate.machine(2),
        }  # fmt: skip
    with open(arguments.json, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
