"""Connections within limits: so many at once, a request's head within its time, and none that stays open for nothing.

Uvicorn ends connections that are idle after an answer; those that never send a whole request, send it letter by letter, or do not read
their answer are ended here.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mpt_jax.serving.measures import Measures
from mpt_jax.serving.settings import ServeSettings

REASONS = {408: "Request Timeout", 503: "Service Unavailable"}


class Watched:
    """A transport that is aborted where its client takes nothing of what was written for so many seconds.

    It looks from ``watch`` on, and once it is to close: closing alone waits for the client for ever.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, seconds: float):
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Closes it once all is taken."""
        self._transport.close()
        self.watch()

    def watch(self) -> None:
        """Looks from now on."""
        if self._timer is None:
            self._left = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer, before = None, self._left
        if self._transport.get_write_buffer_size() < before:
            self.watch()
        else:
            self._transport.abort()


class _Reading(H11Protocol):
    """A connection that ends where its client does not read. Uvicorn makes it with arguments of its own."""

    taken_s: float  # in which the client must take something

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Watched(transport, self.loop, self.taken_s))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.transport.end()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.transport.end()


def limited(settings: ServeSettings, measures: Measures) -> type[H11Protocol]:
    """Uvicorn's protocol with these limits."""

    class Limited(_Reading):
        """One connection."""

        taken_s = settings.idle_s
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                self._end(503, f"{settings.max_connections} connections are open (--max_connections): try again.", "too many")
            else:
                self._wait(settings.read_s)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()  # a whole head is there; the time of its body is the application's affair
            elif self._timer is None:
                self._wait(settings.read_s)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:  # else the next request was there already
                self._stop_waiting()
                self._wait(settings.idle_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self, seconds: float) -> None:
            self._timer = self.loop.call_later(seconds, self._late)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            begun = bool(self.conn.trailing_data[0])
            if begun or self.cycle is None:
                self._end(408, f"no whole request has arrived within --read_s {settings.read_s:g} seconds.", "too slow")
            else:
                self.transport.close()

        def _end(self, status: int, message: str, reason: str) -> None:
            if self.transport.is_closing():
                return
            measures.refused.labels(reason).inc()
            body = json.dumps({"error": message}).encode()
            head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return Limited
