"""The process that measures the package's own programs: a line of JSON for each case, as soon as it is there."""

import argparse
import concurrent.futures
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import pieces, sizes
from benchmarks.accelerator.cases import FULL, TINY, Case, Scale, chosen
from benchmarks.accelerator.programs import Decoding, Training, Weights

FAILURES = (RuntimeError, ValueError, TypeError)  # of one case: its line says so, and the others still run
CHUNKS = 3
EACH_S = 4.0  # of a case once it is compiled


class Side:
    """What the cases share: the device, its reachable rate, weights and rows."""

    def __init__(self, folder: Path, scale: Scale, deadline: float):
        self.scale, self.deadline, self.start = scale, deadline, time.monotonic()
        self.caches = sizes.caches_of(folder, scale)
        self.weights, self.device = Weights(), jax.devices()[0]
        self.reachable: float | None = None

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - (time.monotonic() - self.start)

    def tell(self, case: Case, **found: Any) -> None:
        """Prints a case's line."""
        line = {"case": case.name, "side": case.side, "device": self.device.device_kind, **found}
        print(json.dumps(line | {"at_s": round(time.monotonic() - self.start, 1)}), flush=True)

    def piece(self, case: Case) -> None:
        """Measures a piece of a step."""
        config = sizes.config_of(case.size, self.scale.tiny) if case.size else None
        if case.kind == "product":
            found = pieces.product(self.scale)
            self.reachable = found["rate"]
            found |= sizes.rates(self.device.device_kind, {"computed": found["rate"] * found["seconds"]}, found["seconds"], None)
        elif case.kind == "attention":
            found = pieces.attend(self.scale, config, FAILURES)
        else:
            found = pieces.dense(self.scale, config)
        self.tell(case, **found)

    def prepare(self, case: Case) -> Training | Decoding:
        """A case's program, not compiled yet."""
        made = Decoding if case.kind == "decode" else Training
        return made(case, self.scale, sizes.config_of(case.size, self.scale.tiny), self.caches, self.weights)

    def measure(self, case: Case, made: Training | Decoding) -> None:
        """Times whole updates with batches from the host, and with batches that lie on the device."""
        seconds = _chunks(made, self.scale.chunk_s)
        micro = [part for batch in made.batches for part in batch.micro]
        beside, batches = case.teacher == "beside", len(made.batches)
        needed = sizes.operations(made.program.network, self.scale.prompt, micro, beside, case.kind == "decode")
        needed = {name: value / batches for name, value in needed.items()}
        read = {name: value / batches for name, value in sizes.tokens(micro).items()}
        found: dict[str, Any] = {}
        examples = made.batches[0].examples
        if isinstance(made, Training):
            made.to_device()
            found["seconds_from_device"] = round(statistics.median(_chunks(made, self.scale.chunk_s)), 5)
        middle = statistics.median(seconds)
        largest = max(made.executables.values(), key=lambda one: one.memory["live"])
        found |= sizes.rates(self.device.device_kind, needed, middle, self.reachable)
        self.tell(
            case,
            examples_per_s=round(examples / middle, 2),
            seconds=round(middle, 5),
            spread=[round(min(seconds), 5), round(max(seconds), 5)],
            examples=examples,
            micro_batches=len(made.batches[0].micro),
            input_tokens=read,
            **found,
            memory_gib={kind: round(size / 2**30, 3) for kind, size in largest.memory.items()},
            peak_gib_so_far=round((self.device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30, 3),
            compile_s=[round(one.seconds, 1) for one in made.executables.values()],
        )

    def fits(self, wave: list[Case]) -> list[Case]:
        """The cases of a wave for which there is time; the others are told of."""
        taken: list[Case] = []
        for case in wave:
            longest = max(other.seconds for other in [*taken, case])
            if case.attention == "fused" and self.device.platform == "cpu":
                self.tell(case, skipped="a kernel of GPUs and TPUs")
            elif not self.scale.tiny and longest + EACH_S * len(taken) > self.left():
                self.tell(case, skipped=f"takes about {case.seconds:g} s, and {self.left():.0f} s are left")
            else:
                taken.append(case)
        return taken

    def run(self, wave: list[Case]) -> None:
        """Compiles the programs of a wave side by side, then measures one after the other, each alone on the device."""
        wave = self.fits(wave)
        if wave and wave[0].kind == "product":
            self.piece(wave.pop(0))
        steps = [case for case in wave if case.kind in ("step", "decode")]
        prepared, jobs = {}, {}
        with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            for case in steps:
                try:
                    prepared[case] = self.prepare(case)
                except FAILURES as error:
                    self.tell(case, error=_words(error))
                    continue
                jobs[case] = [pool.submit(job) for job in prepared[case].jobs()]
        for case in wave:
            try:
                if case not in steps:
                    self.piece(case)
                elif case in prepared:
                    for job in jobs[case]:
                        job.result()
                    self.measure(case, prepared[case])
            except FAILURES as error:
                self.tell(case, error=_words(error))
            prepared.pop(case, None)
        self.weights.clear()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _chunks(made: Training | Decoding, seconds: float) -> list[float]:
    """Seconds of an update, by chunk of updates that do not wait for one another; each chunk takes every batch alike."""
    batches = len(made.batches)
    for _ in range(2):  # the second has no first-time work in it
        start = time.perf_counter()
        for _ in range(batches):
            last = made.update()
        jax.block_until_ready(last)
        once = time.perf_counter() - start
    count = batches * max(1, min(round(seconds / once), 50))
    found = []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        for _ in range(count):
            last = made.update()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - start) / count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    side = Side(arguments.folder, TINY if arguments.tiny else FULL, arguments.deadline)
    print(f"jax {jax.__version__}: {side.device.device_kind}, {len(jax.devices())} devices, the first is used", file=sys.stderr, flush=True)
    for wave in chosen(arguments.only)[0]:
        side.run(wave)


if __name__ == "__main__":
    main()
