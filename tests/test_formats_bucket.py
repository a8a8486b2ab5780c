"""Checkpoints in a bucket (files.py): TensorStore against a server on this machine that answers like Cloud Storage."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import TINY, random_params

from mpt_jax.model import formats

READ = """
import hashlib, sys
from mpt_jax.model import formats
for path in sys.argv[1:]:
    config, arrays, vocabulary = formats.read_backbone(path)
    digests = {}
    formats.restore(arrays, digests=digests)
    print(config.num_encoder_layers, formats.fingerprint(digests), vocabulary)
"""


class Bucket(http.server.BaseHTTPRequestHandler):
    """The two requests of the JSON API that reading needs: list objects, and get one or a range of one."""

    root: Path

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(url.query)
        found = re.fullmatch(r"/storage/v1/b/bucket/o(?:/(.+))?", url.path)
        if not found:
            return self.answer(404, b"{}")
        if found[1] is None:
            prefix = query.get("prefix", [""])[0]
            keys = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
            first, end = query.get("startOffset", [""])[0], query.get("endOffset", ["\U0010ffff"])[0]
            items = [{"name": key, "generation": "1", "size": "1"} for key in keys if key.startswith(prefix) and first <= key < end]
            return self.answer(200, json.dumps({"items": items}).encode())
        file = self.root / urllib.parse.unquote(found[1])
        if not file.is_file():
            return self.answer(404, b"{}")
        data = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(200, data)
        start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
        if start >= len(data):
            return self.answer(416, b"")
        part = data[start:stop]
        return self.answer(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})

    def answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path):
    handler = type("ThisBucket", (Bucket,), {"root": tmp_path})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_backbones_in_a_bucket(bucket):
    folder, url = bucket
    for kind in ("t5x", "orbax", "hf", "own"):
        formats.write_backbone(kind, folder / "models" / kind / "checkpoint_5", TINY, random_params(TINY))
    digests: dict[str, bytes] = {}
    formats.restore({path: formats.in_memory(array) for path, array in random_params(TINY).items()}, np.float32, digests=digests)
    environment = os.environ | {"TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    paths = [f"gs://bucket/models/{kind}/checkpoint_5" for kind in ("t5x", "orbax", "hf", "own")] + ["gs://bucket/models/t5x"]
    done = subprocess.run([sys.executable, "-c", READ, *paths], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"3 {formats.fingerprint(digests)} None"] * len(paths)
