"""Connections within limits: so many at once, a request's head within its time, and none that stays open for nothing.

Uvicorn ends connections that are idle after an answer; those that never send a whole request, or send it letter by letter, are ended here.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mpt_jax.serving.measures import Measures
from mpt_jax.serving.settings import ServeSettings

REASONS = {408: "Request Timeout", 503: "Service Unavailable"}


def limited(settings: ServeSettings, measures: Measures) -> type[H11Protocol]:
    """Uvicorn's protocol with these limits."""

    class Limited(H11Protocol):
        """One connection. Uvicorn makes it with arguments of its own."""

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
