"""The command serve: loads runs, listens, compiles, answers until SIGTERM, and then answers what it has taken."""

import asyncio
import contextlib
import importlib.util
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mpt_jax import tasks
from mpt_jax.errors import UserError
from mpt_jax.serving.settings import ServeSettings

NEEDED = ("starlette", "uvicorn", "h11", "prometheus_client")
BACKLOG = 1024  # connections that the kernel keeps until they are accepted


def run_serve(folders: Sequence[str], settings: ServeSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises UserError for runs and settings that cannot be served."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs the package {missing[0]!r}, which is not installed: pip install 'mpt_jax[serve]'.")
    if settings.module:
        tasks.import_module(settings.module)
    with listening(settings) as listener:
        server = server_of(folders, settings, f"http://{settings.host}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    if server.failed is not None:
        raise UserError(f"compiling failed: {server.failed}; a smaller --batch_size or --input_tokens needs less memory.")
    _say(_farewell(server.live))


def _farewell(live: Any) -> str:
    """How it ended, when it has."""
    if not live.given_up:
        return f"stopped: all {live.taken:,} requests that were taken are answered"
    return f"stopped: {live.given_up:,} of {live.taken:,} requests were not answered within --stop_s {live.settings.stop_s:g} seconds"


def server_of(folders: Sequence[str], settings: ServeSettings, address: str) -> Any:
    """The server (uvicorn.Server) of these runs; ``live`` is what it answers for, ``failed`` what went wrong as it compiled."""
    import uvicorn

    from mpt_jax.serving.app import app_of
    from mpt_jax.serving.live import Live
    from mpt_jax.serving.measures import Measures
    from mpt_jax.serving.protocol import limited

    measures = Measures()
    live = Live(folders, settings, measures)
    _say(f"{len(live.sources.tasks())} tasks of {len(folders)} runs; compiling, then answering at {address}")

    async def warm() -> None:
        warming = asyncio.ensure_future(live.warm())
        await asyncio.wait([warming])
        server.failed = warming.exception()
        if server.failed is not None:
            server.should_exit = True
        elif live.ready:
            _say(f"ready: {warming.result()} programs compiled, {address}")

    config = uvicorn.Config(
        app_of(live, warm), http=limited(settings, measures), ws="none", loop="asyncio", lifespan="on", log_level="warning",
        access_log=False, server_header=False, timeout_keep_alive=max(1, round(settings.idle_s)), backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(settings.stop_s)),
    )  # fmt: skip
    server = _server_class(uvicorn)(config)
    server.live, server.failed = live, None
    return server


def _server_class(uvicorn: Any) -> type:
    class Server(uvicorn.Server):
        """Ends with what `run` returns, not by the signal that asked it to stop."""

        live: Any

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.live.batcher.stopping = True
            super().handle_exit(sig, frame)

    return Server


@contextlib.contextmanager
def listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """The socket. UserError for an address that cannot be listened on."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(f"--host {settings.host!r} --port {settings.port} cannot be listened on: {error.strerror or error}.") from error
    with listener:
        yield listener


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
