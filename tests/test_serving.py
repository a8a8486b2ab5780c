"""The server (serving/command.py, app.py, live.py, batcher.py, protocol.py, settings.py, measures.py, refused.py) over real connections:
answers are those of infer, hostile requests get their status and nothing stops, tasks come and go, SIGTERM loses nothing."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_bank
from tiny_model import tiny

import mpt_jax
from mpt_jax import tasks
from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.queries import Answer
from mpt_jax.main import main
from mpt_jax.model.formats import prompt_writers, prompts
from mpt_jax.serving.settings import TOKEN, ServeSettings

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")
command = pytest.importorskip("mpt_jax.serving.command")
Watched = pytest.importorskip("mpt_jax.serving.protocol").Watched
TASKS = ("sst2", "mrpc", "rte", "cola")
TEXTS = ("a film", "no", "two words", "something longer than that", "yes yes yes")
SMALL = ServeSettings(
    port=0, batch_size=4, input_tokens=32, read_s=2.0, max_bytes=4000, max_letters=1000, max_queries=16, max_connections=40
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A root with a backbone, runs a, b and more, prompts in a file, and a run of other weights outside of it."""
    folder = tmp_path_factory.mktemp("serving")
    described = tiny_bank.write_backbone(folder / "backbone")
    root = folder / "root"
    for name, names, seed in (("a", TASKS[:3], 0), ("b", TASKS[3:], 1), ("more", ("wic", "boolq"), 2)):
        tiny_bank.write_prompts(root / name, described, names, seed=seed, inputs=32)
    convert(str(root / "more"), "npz", str(root / "exported"), task="wic")
    tiny_bank.write_prompts(root / "spoken", described, ("y",), vocabulary="/elsewhere.model")
    convert(str(root / "spoken"), "npz", str(root / "spoken"))
    prompt_writers.write("npz", str(root / "sly"), prompts.plain(tiny_bank.prompts(1, 4, 16), ["a/sst2"], {}))
    prompt_writers.write("npz", str(root / "many"), prompts.plain(tiny_bank.prompts(30, 4, 16), [f"t{n}" for n in range(30)], {}))
    tiny_bank.write_prompts(root / "long", described, ("x",), length=6, inputs=32)
    tiny_bank.write_prompts(folder / "outside", described, ("secret",))
    tiny_bank.write_prompts(root / "other", tiny_bank.write_backbone(folder / "weights", tiny(d_ff=24)), ("x",))
    (root / "linked").mkdir()
    (root / "linked" / "run.json").symlink_to(folder / "outside" / "run.json")
    (root / "way_out").symlink_to(folder / "outside")
    return folder


@contextlib.contextmanager
def serving(folder, settings: ServeSettings, before=None):
    """A server of the runs a and b in a thread; its port. before: what its model's thread does first."""
    with command.listening(settings) as listener:
        server = command.server_of([str(folder / "root" / name) for name in "ab"], settings, "here")
        if before is not None:
            server.live.batcher.executor.submit(before)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(folder):
    """One that is ready."""
    with serving(folder, dataclasses.replace(SMALL, root=str(folder / "root"))) as (made, port):
        deadline = time.monotonic() + 300
        while call(port, "GET", "/health")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield made, port


@pytest.fixture(scope="module")
def alone(folder):
    return {name: mpt_jax.load(str(folder / "root" / name)) for name in ("a", "b", "more")}


def call(port: int, method: str, path: str, body=None, headers=None):
    """(status, JSON or text) of a request; a body that is not bytes is written as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, headers or {})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if "json" in response.headers.get("content-type", "") else text


def predicted(port: int, *queries) -> list[str]:
    status, found = call(port, "POST", "/v1/predict", {"queries": [{"text": text, "task": task} for text, task in queries]})
    assert status == 200, found
    return [answer["text"] for answer in found["answers"]]


def run_of(task: str) -> str:
    return "b" if task == "cola" else "a"


def test_mixed_requests_from_many_clients_get_what_infer_answers(server, alone):
    _, port = server
    queries = [(f"{TEXTS[n % 5]} {n % 7}", TASKS[n % 4]) for n in range(48)]
    expected = [alone[run_of(task)].predict([text], task)[0] for text, task in queries]
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda query: predicted(port, query)[0], queries))
        parts = list(clients.map(lambda start: predicted(port, *queries[start : start + 12]), range(0, 48, 12)))
    assert found == expected and sum(parts, []) == expected


def test_scores_are_those_of_infer(server, alone, table):
    _, port = server
    rows = [{"text": "a film", "task": "sst2", "labels": ["no", "yes"]}, {"text": "a film", "task": "cola", "target": "yes"}]
    status, found = call(port, "POST", "/v1/score", {"queries": rows})
    assert status == 200
    first, second = found["answers"]
    assert list(first["scores"].values()) == pytest.approx(alone["a"].score_labels(["a film"], ["no", "yes"], "sst2")[0].tolist(), abs=1e-3)
    assert second["score"] == pytest.approx(float(alone["b"].score(["a film"], ["yes"])[0]), abs=1e-3)
    table.pop("rte", None)
    found = call(port, "POST", "/v1/score", {"queries": [{"text": "a film", "task": "rte"}]})
    assert found[0] == 422 and "query 0: task 'rte' has no labels here" in found[1]["error"]
    labels = ("no", "maybe", "yes")
    tasks.add(tasks.Task("rte", "generated", ("train",), labels=labels, generate=lambda split: [], version="1"), replace=True)
    status, found = call(port, "POST", "/v1/score", {"queries": [rows[1], {"text": "a film", "task": "rte"}, rows[0]]})
    assert status == 200 and [list(answer) for answer in found["answers"]] == [["score"], ["scores"], ["scores"]]
    scores = found["answers"][1]["scores"]
    assert tuple(scores) == labels
    assert list(scores.values()) == pytest.approx(alone["a"].score_labels(["a film"], task="rte")[0].tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("row", "status", "message"),
    [
        ({"target": "yes", "labels": ["no", "yes"]}, 400, "query 1 has a target and labels: give one of them"),
        ({"labels": []}, 400, "query 1: labels is []"),
        ({"labels": ["same", "same"]}, 400, "it takes a list of different texts"),
        ({"labels": ["no", ""]}, 422, "cannot write label ''"),
        ({"labels": ["no", "y" * 40]}, 422, "label 1 of 2 of text 1 of 2 has 41 tokens, the limit is 16"),
        ({"target": "y" * 40}, 422, "target 1 of 2 has 41 tokens, the limit is 16"),
        ({"labels": [str(n) for n in range(20)]}, 413, "22 targets and labels, and --max_queries is 16"),
    ],
)
def test_scores_that_are_not_given(server, row, status, message):
    _, port = server
    body = {"queries": [{"text": "x", "task": "sst2", "labels": ["no", "yes"]}, {"text": "x", "task": "sst2", **row}]}
    found = call(port, "POST", "/v1/score", body)
    assert found[0] == status and message in found[1]["error"]


def test_scores_that_json_cannot_hold():
    app = pytest.importorskip("mpt_jax.serving.app")
    with pytest.raises(app.Refused, match="query 3: its log-probability is nan"):
        app._scored(3, Answer(scores={"no": -1.0, "yes": float("nan")}))


def test_tasks_come_and_go_while_requests_run(server, alone):
    made, port = server
    stop, wrong = threading.Event(), []
    expected = alone["a"].predict(["a film"], "sst2")

    def ask() -> None:
        while not stop.is_set():
            if predicted(port, ("a film", "sst2")) != expected:
                wrong.append(1)

    thread = threading.Thread(target=ask)
    thread.start()
    for turn in range(6):
        assert call(port, "PUT", "/v1/tasks", {"path": "more"}) == (201, {"tasks": ["wic", "boolq"]})
        assert predicted(port, ("two words", "boolq")) == alone["more"].predict(["two words"], "boolq")
        assert call(port, "PUT", "/v1/tasks", {"path": "exported.npz", "name": f"file{turn}"})[0] == 201
        assert predicted(port, ("no", f"file{turn}/wic")) == predicted(port, ("no", "more/wic")) == alone["more"].predict(["no"], "wic")
        assert call(port, "PUT", "/v1/tasks", {"path": "more"})[0] == 200  # replaced
        names = [row["name"] for row in call(port, "GET", "/v1/tasks")[1]["tasks"]]
        assert names == [*TASKS, f"file{turn}/wic", "more/wic", "boolq"]
        for name in (f"file{turn}/wic", "wic", "boolq"):
            assert call(port, "DELETE", f"/v1/tasks/{name}")[0] == 204
        assert call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "boolq"}]})[0] == 404
    stop.set()
    thread.join()
    (bank,) = made.live.banks.banks.values()
    assert not wrong and not made.live._pending and not made.live._retired
    deadline = time.monotonic() + 5
    while bank.taken != 4 and time.monotonic() < deadline:  # rows are freed by the model's thread
        time.sleep(0.01)
    assert bank.taken == 4 and bank.rows == 16  # nine at most, in six turns: freed rows are used again


def test_what_takes_rows_of_a_larger_table_is_compiled_before_a_task_can_be_asked_for(folder):
    """And paths are looked at outside the loop that answers."""
    with serving(folder, dataclasses.replace(SMALL, root=str(folder / "root"))) as (made, port):
        made.live.batcher.stopping = made.live.ready = True
        live, threads = made.live, []
        below_root = live._below_root
        live._below_root = lambda path: threads.append(threading.current_thread().name) or below_root(path)
        (bank,) = live.banks.banks.values()
        assert bank.rows == 8
        assert call(port, "PUT", "/v1/tasks", {"path": "many.npz"})[0] == 201
        assert bank.rows == 64 and len(threads) == 1 and threads[0].startswith("asyncio")
        compiled = requests._take._cache_size()
        for size in live.batcher.sizes:
            bank.model.own_of(np.arange(size, dtype=np.int32))
        assert requests._take._cache_size() == compiled


BAD = {  # what is sent, the status, and what the message names
    "no JSON": (b"{", 400, "is not JSON"),
    "not UTF-8": (b'{"queries": "\xff"}', 400, "is not JSON"),
    "deep": (b"[" * 3900, 400, "nested too deeply"),
    "a list": ([], 400, "not a JSON object"),
    "nothing": ({}, 400, "the body has no queries"),
    "wrong type": ({"queries": 5}, 400, "queries is 5; it takes a list"),
    "a row that is none": ({"queries": [5]}, 400, "query 0 is 5, not a JSON object"),
    "unknown key": ({"queries": [{"text": "x", "prompt": "y"}]}, 400, "query 0 has 'prompt'; it takes text, task"),
    "no text": ({"queries": [{"task": "sst2"}]}, 400, "query 0 has no text"),
    "text of another type": ({"queries": [{"text": {"a": 1}, "task": "sst2"}]}, 400, "text is {'a': 1}; it takes a text"),
    "seed of another type": ({"queries": [{"text": "x", "task": "sst2", "seed": True}]}, 400, "seed is True; it takes a whole number"),
    "many digits": (b'{"queries": [{"text": "x", "seed": ' + b"9" * 3900 + b"}]}", 400, "seed"),
    "negative": ({"queries": [{"text": "x", "task": "sst2", "max_tokens": -1}]}, 400, "max_tokens = -1"),
    "half a letter": (b'{"queries": [{"text": "\\ud800", "task": "sst2"}]}', 422, "text 0 of 1"),
    "empty": ({"queries": [{"text": " ", "task": "sst2"}]}, 422, "zero-length input"),
    "unknown task": ({"queries": [{"text": "x", "task": "sst3"}]}, 404, "no prompt of task 'sst3'; nearest: sst2"),
    "long task": ({"queries": [{"text": "x", "task": "y" * 2000}]}, 413, "query 0: task has 2,000 letters, and --max_letters is 1,000"),
    "unknown seed": ({"queries": [{"text": "x", "task": "sst2", "seed": 9}]}, 422, "seed = 9"),
    "more tokens than served": ({"queries": [{"text": "x", "task": "sst2", "max_tokens": 999}]}, 422, "--output_tokens"),
    "long input": ({"queries": [{"text": "x" * 200, "task": "sst2"}]}, 422, "has 201 tokens, and task 'sst2' reads 32"),
    "long text": ({"queries": [{"text": "x" * 2000, "task": "sst2"}]}, 413, "--max_letters is 1,000"),
    "many queries": ({"queries": [{"text": "x", "task": "sst2"}] * 17}, 413, "--max_queries is 16"),
    "large body": (b" " * 5000, 413, "--max_bytes 4,000"),
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_bodies_get_their_status(server, name):
    _, port = server
    body, status, message = BAD[name]
    found = call(port, "POST", "/v1/predict", body)
    assert found[0] == status and message in found[1]["error"] and "\n" not in found[1]["error"]
    assert call(port, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"path": "../outside"}, 403, "is not below --root"),
        ({"path": "/etc"}, 403, "is not below --root"),
        ({"path": "way_out"}, 403, "is not below --root"),
        ({"path": "linked"}, 403, "holds the link 'run.json', which leads out"),
        ({"path": "."}, 403, "is not below --root"),
        ({"path": "a\0"}, 400, "is not a path"),
        ({"path": "\ud800"}, 400, "is not a path"),
        ({"path": "\udcff"}, 404, "nothing of that name"),
        ({"path": "a/" * 1000}, 413, "path has 2,000 letters, and --max_letters is 1,000"),
        ({"path": "sly.npz"}, 422, "with source 'sly', the name 'a/sst2' would stand for two tasks"),
        ({"path": "nothing"}, 404, "nothing of that name"),
        ({"path": "a", "name": "../x"}, 400, "it takes 1 to 100 letters"),
        ({"path": "a", "checkpoint": "newest"}, 400, "it takes 'best' or 'last'"),
        ({"path": "other"}, 422, "was trained on backbone"),
        ({"path": "spoken.npz"}, 422, "was trained with vocabulary '/elsewhere.model', run "),
        ({"path": "long"}, 422, "its prompts have length 6, this server has compiled 4"),
        ({}, 400, "the body has no path"),
    ],
)
def test_paths_that_are_not_added(server, body, status, message):
    _, port = server
    found = call(port, "PUT", "/v1/tasks", body)
    assert found[0] == status and message in found[1]["error"]


def test_names_in_messages_are_short(server):
    _, port = server
    for found in (
        call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "y" * 900}]}),
        call(port, "DELETE", f"/v1/tasks/{'y' * 900}"),
    ):
        assert found[0] == 404 and len(found[1]["error"]) < 300


def test_unknown_addresses_and_ways(server):
    _, port = server
    assert [call(port, *way)[0] for way in (("GET", "/"), ("GET", "/v1/predict"), ("DELETE", "/v1/tasks/none"))] == [404, 405, 404]


def test_slow_and_many_connections_end_and_the_server_goes_on(server, alone):
    _, port = server
    with contextlib.ExitStack() as stack:
        def connected(sent: bytes = b"") -> socket.socket:
            made = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            made.sendall(sent)
            return made

        slow = connected(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"), connected(b"GET /health HT"), connected()
        for one, status in zip(slow, (408, 408, 408), strict=True):
            assert b"HTTP/1.1 %d" % status in one.recv(1000)
        crowd = [connected() for _ in range(60)]
        answers = [one.recv(1000) for one in crowd[-5:]]
        assert all(b"HTTP/1.1 503" in answer and b"--max_connections" in answer for answer in answers)
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if call(port, "GET", "/health")[0] == 200:
                break
        assert time.monotonic() < deadline
    assert predicted(port, ("no", "sst2")) == alone["a"].predict(["no"], "sst2")


def test_a_client_that_reads_nothing_is_ended(folder):
    """Of many answers that it asked for in one go most cannot be sent."""
    with serving(folder, dataclasses.replace(SMALL, idle_s=0.3)) as (made, port):
        made.live.batcher.stopping = made.live.ready = True
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", port))
            silent.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
            deadline = time.monotonic() + 20
            while not any(each.flow.write_paused for each in set(made.server_state.connections)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            while made.server_state.connections:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_connection_that_closes_waits_for_a_client_as_long_as_it_reads():
    sent = 2**23

    class Sends(asyncio.Protocol):
        def connection_made(self, transport) -> None:
            transport.write(b"x" * sent)
            self.transport = Watched(transport, asyncio.get_running_loop(), 0.4)
            self.transport.close()

        def connection_lost(self, exc) -> None:
            self.transport.end()
            lost.put(exc)

    def read_slowly(address) -> int:
        with socket.create_connection(address) as client:
            found = 0
            while part := client.recv(2**20):
                found += len(part)
                time.sleep(0.02)
            return found

    async def run() -> int:
        made = await asyncio.get_running_loop().create_server(Sends, "127.0.0.1", 0)
        address = made.sockets[0].getsockname()
        with socket.create_connection(address):  # reads nothing
            assert await asyncio.to_thread(lost.get, True, 20) is None
        read = await asyncio.to_thread(read_slowly, address)
        await asyncio.to_thread(lost.get, True, 20)
        made.close()
        return read

    lost = queue.Queue()
    assert asyncio.run(run()) == sent


def test_queries_count_where_they_are_answered(server, monkeypatch):
    made, port = server

    def counted() -> float:
        lines = call(port, "GET", "/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('mpt_queries_total{kind="text"}'))

    before = counted()
    predicted(port, *[("a film", "sst2")] * 6)  # in two batches
    assert counted() == before + 6
    with monkeypatch.context() as broken:
        broken.setattr(made.live.batcher, "compute", lambda given: 1 / 0)
        found = call(port, "POST", "/v1/predict", {"queries": [{"text": "a film", "task": "sst2"}] * 6})
        assert found == (500, {"error": "the model failed; the server's log says why"})
    assert counted() == before + 6


def test_counters(server):
    _, port = server
    text = call(port, "GET", "/metrics")[1]
    assert 'mpt_requests_total{path="/health",status="200"}' in text and "mpt_tasks 4.0" in text and "mpt_waiting_queries 0.0" in text


def test_what_nobody_foresaw_is_an_error_in_json_and_counted(server, monkeypatch):
    made, port = server
    monkeypatch.setattr(made.live, "described", lambda: [][0])
    assert call(port, "GET", "/v1/tasks") == (500, {"error": "this should not have happened; the server's log says what did"})
    assert 'mpt_requests_total{path="/v1/tasks",status="500"} 1.0' in call(port, "GET", "/metrics")[1]


def test_limits_below_a_runs_own_refuse_what_is_longer(folder):
    """Its inputs have 32 tokens and its targets 16; the server reads 8 and writes 10."""
    settings = dataclasses.replace(SMALL, input_tokens=8, output_tokens=10, root=str(folder / "root"))
    with serving(folder, settings) as (made, port):
        assert made.live._read(str(folder / "root" / "a"), "a", "best")[0].input_length == 8  # the same run once more
        made.live.batcher.stopping = made.live.ready = True
        for path, row, message in (
            ("/v1/predict", {"text": "x" * 20, "task": "sst2"}, "has 21 tokens, and task 'sst2' reads 8"),
            ("/v1/score", {"text": "x", "task": "sst2", "target": "y" * 12}, "target 0 of 1 has 13 tokens, the limit is 10"),
        ):
            found = call(port, "POST", path, {"queries": [row]})
            assert found[0] == 422 and message in found[1]["error"]
        assert [row["input_tokens"] for row in call(port, "GET", "/v1/tasks")[1]["tasks"]] == [8] * 4


def test_a_full_queue_and_a_late_answer(folder):
    settings = dataclasses.replace(SMALL, batch_size=1, input_tokens=32, max_queue=2, answer_s=0.05, wait_ms=0.0)
    go_on = threading.Event()
    with serving(folder, settings, go_on.wait) as (made, port):
        assert call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "sst2"}]}) == (
            503, {"error": "the server is still compiling: ask /health until it says ready"},
        )  # fmt: skip
        made.live.batcher.stopping = made.live.ready = True
        found = call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "sst2"}] * 3})
        assert found[0] == 503 and "--max_queue is 2" in found[1]["error"]
        found = call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "sst2"}]})
        assert found[0] == 504 and "--answer_s 0.05" in found[1]["error"]
        assert call(port, "PUT", "/v1/tasks", {"path": "more"})[0] == 403
        go_on.set()


def test_a_token_with_any_letters(folder, monkeypatch):
    """The bytes of the header are compared with those of the variable."""
    monkeypatch.setenv(TOKEN, "pässwort")
    with serving(folder, SMALL) as (made, port):
        made.live.batcher.stopping = True
        for encoding, status in (("utf-8", 200), ("latin-1", 401)):
            assert call(port, "GET", "/v1/tasks", None, {"Authorization": "Bearer pässwort".encode(encoding)})[0] == status


def test_what_is_cut_off_is_told(folder):
    """A request is still with the model when the time to stop is over."""
    go_on = threading.Event()
    settings = dataclasses.replace(SMALL, stop_s=1.0)
    with serving(folder, settings, go_on.wait) as (made, port):
        made.live.batcher.stopping = made.live.ready = True
        assert command._farewell(made.live) == "stopped: all 0 requests that were taken are answered"
        found = []
        client = threading.Thread(
            target=lambda: found.append(call(port, "POST", "/v1/predict", {"queries": [{"text": "x", "task": "sst2"}]})[0])
        )
        client.start()
        deadline = time.monotonic() + 20
        while not made.live.taken and time.monotonic() < deadline:
            time.sleep(0.01)
        made.should_exit = True
        while not made.live.given_up and time.monotonic() < deadline:
            time.sleep(0.01)
        go_on.set()
        client.join(20)
    assert found == [500]
    assert command._farewell(made.live) == "stopped: 1 of 1 requests were not answered within --stop_s 1 seconds"


def test_a_token_is_asked_for(folder, monkeypatch):
    monkeypatch.setenv(TOKEN, "pass")
    with serving(folder, SMALL) as (made, port):
        made.live.batcher.stopping = True
        assert call(port, "GET", "/health")[0] in (200, 503)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "pass"}, {"Authorization": "Bearer pässe"}):
            found = call(port, "GET", "/v1/tasks", None, {key: value.encode("latin-1") for key, value in headers.items()})
            assert found[0] == 401 and "Authorization: Bearer TOKEN" in found[1]["error"]
        assert call(port, "GET", "/v1/tasks", None, {"Authorization": "Bearer pass"})[0] == 200


def test_settings_that_cannot_be_served(folder, monkeypatch, capsys):
    monkeypatch.delenv(TOKEN, raising=False)
    for changes, message in (
        ({"host": "0.0.0.0"}, "set the variable MPT_SERVE_TOKEN"),
        ({"port": 70_000}, "--port = 70000 is outside"),
        ({"batch_size": 0}, "--batch_size = 0"),
        ({"root": str(folder / "none")}, "is not a folder"),
        ({"checkpoint": "newest"}, "is not one of 'best', 'last'"),
    ):
        with pytest.raises(UserError) as error:
            ServeSettings(**changes)
        assert message in str(error.value)
    for argv, message in (([], "serve needs a run folder"), (["--run", str(folder / "backbone")], "is not a run folder")):
        assert main(["serve", *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_under_load_answers_what_was_taken(folder, alone, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    argv = [sys.executable, "-m", "mpt_jax", "serve", "--run", str(folder / "root" / "a"), "--port", "0", "--batch_size", "4"]
    process = subprocess.Popen([*argv, "--input_tokens", "32"], env=environment, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if line.startswith("ready"))
    port = int(line.rsplit(":", 1)[1])
    expected = alone["a"].predict(["a film"], "mrpc")
    answered, started = [], threading.Event()

    def ask() -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.connect()
                connection.request("POST", "/v1/predict", json.dumps({"queries": [{"text": "a film", "task": "mrpc"}] * 8}).encode())
            except OSError:
                return  # it does not listen any more
            try:
                answered.append(json.loads(connection.getresponse().read())["answers"])
                started.set()
            except (OSError, http.client.HTTPException):
                return  # the kernel took the connection, and the server had gone: the numbers below tell whether it had read it

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    started.wait(60)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    for client in clients:
        client.join(60)
    rest = process.stderr.read()
    assert answered and all(answer == [{"text": text} for text in expected * 8] for answer in answered)
    assert f"stopped: all {len(answered):,} requests that were taken are answered" in rest  # none was read and lost
