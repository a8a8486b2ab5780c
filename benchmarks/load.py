"""Loading a T5-Base-sized backbone: seconds and peak host memory, beside transformers' own loading of the same folder.

    python benchmarks/load.py [--repeats 3] [--folder DIR]

Writes random weights of the shapes of T5 v1.0 Base and v1.1 Base (0.9 and 1.0 GB) as Hugging Face folders, and of v1.1 as
T5X checkpoints, then loads each in a fresh process, in turns so that a noisy machine disturbs all alike. Prints one JSON line
for each case: median seconds (wall, and CPU of all threads), wall time as a multiple of transformers', peak memory of the
process above what it held before loading, and the same above the model itself, counted in sizes of its largest array.
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
    load = lambda: transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
else:
    import jax, jax.numpy as jnp, numpy as np
    from mpt_jax.model import formats
    jnp.zeros(1).block_until_ready()
    digests = {} if kind == "ours+fingerprint" else None
    load = lambda: formats.restore(formats.read_backbone(folder)[1], jnp.dtype(dtype), lambda _, a: jax.device_put(a), digests=digests)
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
size = lambda leaf: leaf.nbytes
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "model": sum(map(size, leaves)), "largest": max(map(size, leaves))}))
"""


def write_folders(folder: Path) -> list[tuple[str, Path]]:
    """The folders to load, written once: (name, path)."""
    import numpy as np

    from mpt_jax.config import T5_SIZES
    from mpt_jax.model import formats
    from mpt_jax.model.formats import names

    found = []
    for size, kinds in {"t5_base": ("hf",), "t5_1_1_base": ("hf", "t5x", "orbax")}.items():
        config = T5_SIZES[size]
        missing = [kind for kind in kinds if not (folder / f"{size}_{kind}").exists()]
        rng = np.random.default_rng(0)
        params = {e.ours: rng.standard_normal(e.shape, np.float32) for e in names.entries(config)} if missing else {}
        for kind in kinds:
            path = folder / f"{size}_{kind}"
            if kind in missing:
                formats.write_backbone(kind, str(path), config, params)
            found.append((f"{size}_{kind}", path))
    return found


def measure(kind: str, path: Path, dtype: str) -> dict:
    """One loading in a fresh process."""
    command = [sys.executable, "-c", MEASURE, kind, str(path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default="", help="keeps the written folders here for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_folders(Path(arguments.folder or temporary))
        for name, path in folders:
            for dtype in ("float32", "bfloat16"):
                kinds = ["ours", "ours+fingerprint"] + (["transformers"] if name.endswith("hf") else [])
                runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
                for _ in range(arguments.repeats):
                    for kind in kinds:
                        runs[kind].append(measure(kind, path, dtype))
                medians = {kind: {key: statistics.median(run[key] for run in many) for key in many[0]} for kind, many in runs.items()}
                for kind, median in medians.items():
                    print(json.dumps(summary(name, dtype, kind, median, medians.get("transformers"), runs[kind])), flush=True)


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
        "above_model_in_largest_arrays": round((median["peak"] - median["model"]) / median["largest"], 3),
    }


if __name__ == "__main__":
    main()
