"""The HTTP interface: routes, their bodies and limits, and who may ask."""

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mpt_jax import tasks
from mpt_jax.errors import UserError
from mpt_jax.infer.queries import Answer, Query
from mpt_jax.regular_files import parse_json, shown
from mpt_jax.serving.live import Live
from mpt_jax.serving.measures import CONTENT_TYPE
from mpt_jax.serving.refused import Refused

log = logging.getLogger(__name__)

Handler = Callable[[Live, Request], Awaitable[Response]]
MOST_SEED = 2**31


class JSONResponse(Response):
    """A JSON value. Half a letter, which UTF-8 cannot write, is written as its escape."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def app_of(live: Live, started: Callable[[], Awaitable[None]]) -> ASGIApp:
    """The application. started: runs once it listens, beside the requests (warming up)."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        live.batching = asyncio.create_task(live.batcher.run())
        running = [live.batching, asyncio.create_task(started())]
        yield
        live.batcher.stopping = True
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        live.batcher.executor.shutdown(wait=True)

    def route(path: str, open_to_all: bool = False, **methods: Handler) -> Route:
        return Route(path, functools.partial(_answered, live, path, methods, open_to_all), methods=[*methods])

    routes = [
        route("/v1/predict", POST=predict),
        route("/v1/score", POST=score),
        route("/v1/tasks", GET=list_tasks, PUT=add_tasks),
        route("/v1/tasks/{name:path}", DELETE=remove_task),
        route("/health", True, GET=health),
        route("/metrics", GET=metrics),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        live.taken += scope["type"] == "http"
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            live.given_up += scope["type"] == "http"
            raise

    return counted


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _answered(live: Live, path: str, methods: dict[str, Handler], open_to_all: bool, request: Request) -> Response:
    """The answer to a request, or why it is refused, counted and timed."""
    start = time.monotonic()
    try:
        if not open_to_all:
            _check_token(live, request)
        response = await methods["GET" if request.method == "HEAD" else request.method](live, request)
    except Refused as refused:
        response = JSONResponse({"error": str(refused)}, refused.status, refused.headers)
    except ClientDisconnect:
        response = JSONResponse({"error": "the client has left"}, 400)
    except Exception:
        log.exception("%s %s", request.method, path)
        response = JSONResponse({"error": "this should not have happened; the server's log says what did"}, 500)
    live.measures.requests.labels(path, str(response.status_code)).inc()
    live.measures.seconds.labels(path).observe(time.monotonic() - start)
    return response


def _check_token(live: Live, request: Request) -> None:
    token = live.settings.token
    given = request.headers.get("authorization", "").encode("latin-1")  # the bytes of the header, as those of the variable
    if token and not hmac.compare_digest(given, b"Bearer " + os.fsencode(token)):
        raise Refused(401, "a token is asked for: send the header `Authorization: Bearer TOKEN`.", {"WWW-Authenticate": "Bearer"})


async def _body(live: Live, request: Request) -> dict[str, Any]:
    """The JSON object of a request's body, within the limits of size and time."""
    most, said = live.settings.max_bytes, f"the body has more than --max_bytes {live.settings.max_bytes:,} bytes: send less at once."
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told[:20]) > most:
        raise Refused(413, said, {"Connection": "close"})
    content = bytearray()
    try:
        async with asyncio.timeout(live.settings.read_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise Refused(413, said, {"Connection": "close"})
    except TimeoutError as error:
        message = f"the body has not arrived within --read_s {live.settings.read_s:g} seconds."
        raise Refused(408, message, {"Connection": "close"}) from error
    try:
        found = parse_json(bytes(content), "the body")
    except UserError as error:
        raise Refused(400, str(error)) from error
    if not isinstance(found, dict):
        raise Refused(400, f"the body is {shown(found)}, not a JSON object.")
    return found


def _field(row: dict, name: str, kind: type, default: Any, where: str) -> Any:
    value = row.get(name, default)
    if value is default:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {str: "a text", int: "a whole number", list: "a list"}[kind]
        raise Refused(400, f"{where}: {name} is {shown(value)}; it takes {wanted}.")
    if kind is int and not 0 <= value < MOST_SEED:
        raise Refused(400, f"{where}: {name} = {shown(value)}; it takes a whole number in 0 .. {MOST_SEED - 1}.")
    return value


def _known(row: Any, names: tuple[str, ...], where: str) -> dict:
    if not isinstance(row, dict):
        raise Refused(400, f"{where} is {shown(row)}, not a JSON object.")
    unknown = sorted(row.keys() - set(names))
    if unknown:
        raise Refused(400, f"{where} has {shown(unknown[0])}; it takes {', '.join(names)}.")
    return row


def _rows(live: Live, body: dict, names: tuple[str, ...]) -> list[tuple[str, dict]]:
    """(its place for messages, row) of each query of a body."""
    rows = _field(_known(body, ("queries",), "the body"), "queries", list, None, "the body")
    if not rows:
        raise Refused(400, "the body has no queries: send {\"queries\": [{\"text\": \"…\", \"task\": \"…\"}]}.")
    if len(rows) > live.settings.max_queries:
        raise Refused(413, f"{len(rows)} queries, and --max_queries is {live.settings.max_queries}: send fewer at once.")
    return [(f"query {number}", _known(row, names, f"query {number}")) for number, row in enumerate(rows)]


def _text(live: Live, row: dict, name: str, where: str) -> str:
    text = _maybe(live, row, name, where)
    if text is None:
        raise Refused(400, f"{where} has no {name}.")
    return text


def _maybe(live: Live, row: dict, name: str, where: str) -> str | None:
    """A text that need not be there."""
    text = _field(row, name, str, None, where)
    return None if text is None else _short(live, text, name, where)


def _short(live: Live, text: str, name: str, where: str) -> str:
    if len(text) > live.settings.max_letters:
        raise Refused(413, f"{where}: {name} has {len(text):,} letters, and --max_letters is {live.settings.max_letters:,}: shorten it.")
    return text


async def predict(live: Live, request: Request) -> Response:
    """A text for each query."""
    asked = [
        Query(
            _text(live, row, "text", where), _maybe(live, row, "task", where), _field(row, "seed", int, None, where),
            _field(row, "max_tokens", int, 0, where),
        )
        for where, row in _rows(live, await _body(live, request), ("text", "task", "seed", "max_tokens"))
    ]  # fmt: skip
    return JSONResponse({"answers": [{"text": answer.text} for answer in await live.answer(asked)]})


async def score(live: Live, request: Request) -> Response:
    """The log-probability of each query's target, or of each of its labels (those of its task where it names none)."""
    asked: list[Query] = []
    count = 0
    for where, row in _rows(live, await _body(live, request), ("text", "task", "seed", "target", "labels")):
        text, task, target = _text(live, row, "text", where), _maybe(live, row, "task", where), _maybe(live, row, "target", where)
        seed = _field(row, "seed", int, None, where)
        if target is not None and row.get("labels") is not None:
            raise Refused(400, f"{where} has a target and labels: give one of them.")
        labels = _labels(live, row, task, where) if target is None else None
        asked.append(Query(text, task, seed, target=target, labels=labels))
        count += len(labels or (target,))
        if count > live.settings.max_queries:
            message = f"{count} targets and labels, and --max_queries is {live.settings.max_queries}: send fewer at once."
            raise Refused(413, message)
    answers = [_scored(number, answer) for number, answer in enumerate(await live.answer(asked))]
    return JSONResponse({"answers": answers})


def _scored(number: int, answer: Answer) -> dict[str, Any]:
    """What is sent of a query's scores. JSON has no infinite numbers."""
    for score in [answer.score] if answer.scores is None else answer.scores.values():
        if score is None or not math.isfinite(score):
            raise Refused(422, f"query {number}: its log-probability is {score}: the task's prompt or the weights hold no usable numbers.")
    return {"score": answer.score} if answer.scores is None else {"scores": answer.scores}


def _labels(live: Live, row: dict, task: str | None, where: str) -> tuple[str, ...]:
    labels = _field(row, "labels", list, None, where)
    if labels is None:
        try:
            _, name = live.sources.find(task)
        except UserError as error:
            raise Refused(404, str(error)) from error
        labels = tasks.TABLE[name].labels if name in tasks.TABLE else None
        if not labels:
            raise Refused(422, f"{where}: task {name!r} has no labels here: give target or labels, or start the server with --module.")
    if not labels or not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise Refused(400, f"{where}: labels is {shown(labels)}; it takes a list of different texts.")
    return tuple(_short(live, label, "a label", where) for label in labels)


async def list_tasks(live: Live, request: Request) -> Response:
    """The tasks that can be asked for."""
    return JSONResponse({"tasks": live.described()})


async def add_tasks(live: Live, request: Request) -> Response:
    """Adds a run folder or prompts below --root."""
    body = _known(await _body(live, request), ("path", "name", "checkpoint"), "the body")
    path, name = _maybe(live, body, "path", "the body"), _field(body, "name", str, "", "the body")
    checkpoint = _field(body, "checkpoint", str, live.settings.checkpoint, "the body")
    if path is None:
        raise Refused(400, "the body has no path: send {\"path\": \"a run folder below --root\"}.")
    if checkpoint not in ("best", "last"):
        raise Refused(400, f"checkpoint is {shown(checkpoint)}; it takes 'best' or 'last'.")
    new, names = await live.add(path, name, checkpoint)
    return JSONResponse({"tasks": names}, 201 if new else 200)


async def remove_task(live: Live, request: Request) -> Response:
    """Takes a task away."""
    await live.remove(_short(live, request.path_params["name"], "the task's name", "the address"))
    return Response(status_code=204)


async def health(live: Live, request: Request) -> Response:
    """'ready' when everything is compiled; 'warming' (503) before, 'failed' (503) where nothing answers any more."""
    status = "failed" if live.batching is not None and live.batching.done() else "ready" if live.ready else "warming"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


async def metrics(live: Live, request: Request) -> Response:
    """What Prometheus reads."""
    return Response(live.measures.text(), media_type=CONTENT_TYPE)
