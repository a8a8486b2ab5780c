"""A real object-store server on this machine, for the tests of buckets: Google's protocol or Amazon's. It can be stopped and started."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BUCKET = "bucket"
# the emulator parses an upload as mail, which drops a carriage return at the end of an object
GOOGLE = """
from gcp_storage_emulator import server
from gcp_storage_emulator.__main__ import main

parse = server.BytesParser.parsebytes

def exact(self, text, *more):
    message = parse(self, text, *more)
    boundary = b'--' + (message.get_boundary() or '').encode()
    if message.get_content_type() == 'multipart/related' and boundary + b'\\n' in text:  # lines end as gcsfs ends them
        if text[: text.rindex(b'\\n' + boundary)].endswith(b'\\r'):
            message.get_payload()[1]._payload += '\\r'  # get_payload replaces what is not ASCII
    return message

server.BytesParser.parsebytes = exact
main()
"""
NEEDS = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto", "flask_cors")}


class Server:
    """gs: gcp-storage-emulator, which keeps its objects in a folder. s3: moto, which keeps them in memory. Skips the test without them."""

    def __init__(self, scheme: str, folder: Path):
        for name in NEEDS[scheme]:
            pytest.importorskip(name)
        self.scheme, self.folder = scheme, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead gcsfs, s3fs and TensorStore here."""
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, **keys}

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.scheme == "gs":
            where = [f"--data-dir={self.folder}", "start", "--host=127.0.0.1", f"--port={self.port}"]
            options = [*where, "--quiet", f"--default-bucket={BUCKET}"]
            argv = [sys.executable, "-c", GOOGLE, *options]
        else:
            argv = [sys.executable, "-c", "from moto.server import main; main()", "--host=127.0.0.1", f"--port={self.port}"]
        with (self.folder.parent / f"{self.scheme}_server.log").open("a") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **self.environment})
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "the object server does not start"
                time.sleep(0.1)
        if self.scheme == "s3":
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT"), timeout=10).close()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
