"""What `mpt-jax serve` may be told: where it listens, how it batches, and the limits that keep it going."""

import dataclasses
import ipaddress
import os
from typing import Any

from mpt_jax import checks
from mpt_jax.config import MOST_ROWS, MOST_TOKENS
from mpt_jax.errors import UserError

TOKEN = "MPT_SERVE_TOKEN"  # variable with the token that requests must bring


def _setting(default, about: str):
    return dataclasses.field(default=default, metadata={"about": about})


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """Flags of the command, each with its default."""

    host: str = _setting("127.0.0.1", "address to listen on; one that others reach needs the variable MPT_SERVE_TOKEN")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    root: str = _setting("", "folder below which PUT /v1/tasks reads run folders and prompts; empty: it reads nothing")
    module: str = _setting("", "module or file that registers tasks, for their labels")
    checkpoint: str = _setting("best", "checkpoint of the runs: best or last")
    backbone: str = _setting("", "folder of the backbone, where it has moved since training")
    batch_size: int = _setting(32, "queries answered together at most")
    wait_ms: float = _setting(3.0, "milliseconds that a query waits for others to share its batch")
    input_tokens: int = _setting(0, "tokens of an input at most; 0: the most that a run at start has")
    output_tokens: int = _setting(0, "tokens of an answer or target at most; 0: the most that a run at start has")
    cut: bool = _setting(False, "cut inputs that are longer than their run's limit, as infer does; otherwise they are refused")
    max_bytes: int = _setting(2**20, "bytes of a request's body at most")
    max_letters: int = _setting(20_000, "letters of a text at most")
    max_queries: int = _setting(256, "queries of a request at most")
    max_queue: int = _setting(2048, "queries that wait at most")
    max_tasks: int = _setting(10_000, "prompts in memory at most")
    max_connections: int = _setting(512, "open connections at most")
    read_s: float = _setting(10.0, "seconds in which a request must have arrived")
    answer_s: float = _setting(60.0, "seconds in which it must be answered")
    idle_s: float = _setting(30.0, "seconds that a connection may stay open between requests")
    stop_s: float = _setting(60.0, "seconds that requests have to be answered after SIGTERM")

    def __post_init__(self):
        checks.check_types(self)
        checks.set_paths(self, {"root": "--root", "module": "--module", "backbone": "--backbone"})
        checks.check_choice("--checkpoint", self.checkpoint, ("best", "last"))
        bounds = {
            "port": (0, 65_535), "batch_size": (1, MOST_ROWS), "wait_ms": (0.0, 10_000.0), "input_tokens": (0, MOST_TOKENS),
            "output_tokens": (0, MOST_TOKENS), "max_bytes": (1, 2**30), "max_letters": (1, 2**30), "max_queries": (1, 2**20),
            "max_queue": (1, 2**24), "max_tasks": (1, 2**20), "max_connections": (1, 65_000), "read_s": (0.01, 3600.0),
            "answer_s": (0.01, 3600.0), "idle_s": (0.01, 3600.0), "stop_s": (0.01, 3600.0),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            checks.check_range(f"--{name}", getattr(self, name), least, most)
        if self.root and not os.path.isdir(self.root):
            raise UserError(f"--root {self.root!r} is not a folder.")
        if not self.token and not _loopback(self.host):
            raise UserError(f"--host {self.host!r} can be reached by others: set the variable {TOKEN} to a token that requests must bring.")

    @property
    def token(self) -> str:
        """The token that requests must bring; '' where none is asked for."""
        return os.environ.get(TOKEN, "")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def flags() -> list[tuple[str, dict[str, Any]]]:
    """The flags of the command: the run folders, and a flag for each setting."""
    found: list[tuple[str, dict[str, Any]]] = [
        ("--run", {"action": "append", "default": [], "metavar": "MODEL_DIR", "help": "a run folder whose prompts answer; may be repeated"})
    ]
    for field in dataclasses.fields(ServeSettings):
        known: dict[str, Any] = {"help": field.metadata["about"]}
        if isinstance(field.default, bool):
            known |= {"action": "store_true"}
        else:
            shown = f" (default: {field.default})" if field.default != "" else ""
            known |= {"type": type(field.default), "default": field.default, "metavar": "VALUE", "help": f"{known['help']}{shown}"}
        found.append((f"--{field.name}", known))
    return found


def settings_of(arguments: Any) -> ServeSettings:
    """The settings that the flags say."""
    return ServeSettings(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(ServeSettings)})
