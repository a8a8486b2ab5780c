"""Loading a T5-Base-sized backbone: seconds and peak host memory, beside transformers' own loading of the same folder.

    python -m benchmarks.load [--json FILE] [--repeats 3] [--folder DIR] [--only NAME ...]

Writes random weights of the shapes of T5 v1.0 Base and v1.1 Base (0.9 and 1.0 GB) as Hugging Face folders, and of v1.1 as
T5X checkpoints: native with our chunks and with T5X's of 64 MiB, and on Orbax. Then loads each in a fresh process, in turns so
that a noisy machine disturbs all alike. Prints one JSON line for each case, and appends it to FILE: median seconds (wall, and CPU
of all threads), wall time as a multiple of transformers', median peak memory of the process above what it held before loading,
and the highest peak above the model itself, counted in sizes of its largest array.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import json, sys, time
kind, folder, dtype = sys.argv[1:]
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
if kind == "transformers":
    import torch, transformers
    transformers.T5ForConditionalGeneration(transformers.T5Config(num_layers=1, d_model=8, d_ff=8, vocab_size=8))
    def load():
        return transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
else:
    import jax, jax.numpy as jnp, numpy as np
    from mpt_jax.model import formats
    jnp.zeros(1).block_until_ready()
    digests = {} if kind == "ours+fingerprint" else None
    def load():
        return formats.restore(formats.read_backbone(folder)[1], jnp.dtype(dtype), lambda _, a: jax.device_put(a), digests=digests)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
start, cpu = time.perf_counter(), time.process_time()
model = load()
leaves = list(model.parameters()) if kind == "transformers" else jax.tree.leaves(model)
if kind == "transformers":  # it maps the file and has read nothing yet: touch every page, as the first step would
    for leaf in leaves:
        leaf.detach().reshape(-1)[::512].sum().item()
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = status("VmHWM") - before
sizes = [leaf.nbytes for leaf in leaves]
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "model": sum(sizes), "largest": max(sizes)}))
"""


T5X_CHUNK_BYTES = 64 * 2**20  # t5x/checkpoints.py, Checkpointer
# name: (size, format)
FOLDERS = {
    "t5_base_hf": ("t5_base", "hf"),
    "t5_1_1_base_hf": ("t5_1_1_base", "hf"),
    "t5_1_1_base_t5x": ("t5_1_1_base", "t5x"),
    "t5_1_1_base_t5x_64mib": ("t5_1_1_base", "t5x_64mib"),
    "t5_1_1_base_orbax": ("t5_1_1_base", "orbax"),
}


def write_folder(path: Path, size: str, kind: str) -> None:
    """A backbone of random weights, unless the folder is there."""
    import numpy as np

    from mpt_jax.model import formats
    from mpt_jax.model.families.t5_config import T5_SIZES
    from mpt_jax.model.formats import names, t5x

    if path.exists():
        return
    rng = np.random.default_rng(0)
    params = {e.ours: rng.standard_normal(e.shape, np.float32) for e in names.entries(T5_SIZES[size])}
    if kind == "t5x_64mib":
        path.mkdir(parents=True)
        arrays = {name: formats.in_memory(array) for name, array in params.items()}
        t5x.write_native(str(path), arrays, chunk_bytes=T5X_CHUNK_BYTES)
    else:
        formats.write_backbone(kind, str(path), T5_SIZES[size], params)


def measure(kind: str, path: Path, dtype: str) -> dict:
    """One loading in a fresh process."""
    command = [sys.executable, "-c", MEASURE, kind, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to which each result is appended as a line")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default="", help="keeps the written folders here for the next time")
    parser.add_argument("--only", nargs="+", choices=FOLDERS, default=list(FOLDERS), metavar="NAME", help=", ".join(FOLDERS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        for name in arguments.only:
            write_folder(folder / name, *FOLDERS[name])
        for name in arguments.only:
            for dtype in ("float32", "bfloat16"):
                for line in results(name, folder / name, dtype, arguments.repeats):
                    print(line, flush=True)
                    if arguments.json:
                        with open(arguments.json, "a", encoding="utf-8") as file:
                            file.write(line + "\n")


def results(name: str, path: Path, dtype: str, repeats: int) -> list[str]:
    """JSON lines of a folder: each way of loading it."""
    kinds = ["ours", "ours+fingerprint"] + (["transformers"] if name.endswith("hf") else [])
    runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            runs[kind].append(measure(kind, path, dtype))
    medians = {kind: {key: statistics.median(run[key] for run in many) for key in many[0]} for kind, many in runs.items()}
    return [json.dumps(summary(name, dtype, kind, median, medians.get("transformers"), runs[kind])) for kind, median in medians.items()]


def summary(name: str, dtype: str, kind: str, median: dict, theirs: dict | None, runs: list[dict]) -> dict:
    """The JSON line of a case."""
    return {
        "benchmark": "load",
        "folder": name,
        "dtype": dtype,
        "by": kind,
        "seconds": round(median["seconds"], 3),
        "all_seconds": [round(run["seconds"], 3) for run in runs],
        "cpu_seconds": round(median["cpu"], 3),
        "times_transformers": round(median["seconds"] / theirs["seconds"], 3) if theirs else None,
        "peak_mb": round(median["peak"] / 1e6, 1),
        "model_mb": round(median["model"] / 1e6, 1),
        "above_model_in_largest_arrays": round((max(run["peak"] for run in runs) - median["model"]) / median["largest"], 3),
    }


if __name__ == "__main__":
    main()
