"""Stand-ins for gcloud, Slurm and kubectl: programs put first on PATH that keep their state in a folder and record every call."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class StandIn:
    """Programs that all run one Python file of tests/, with a scenario to play; ``calls`` are the arguments they were given."""

    def __init__(self, folder: Path, script: str, programs: tuple[str, ...], scenario: dict):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "scenario.json").write_text(json.dumps(scenario))
        (folder / "calls.jsonl").touch()
        for program in programs:
            path = folder / "bin" / program
            path.write_text(f'#!/bin/bash\nSTAND_IN="{folder}" exec "{sys.executable}" -S "{ROOT}/tests/{script}" {program} "$@"\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[list[str]]:
        """Every call so far, program first."""
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def left(self) -> list[str]:
        """What was created and still exists."""
        return sorted(path.stem for path in self.folder.glob("*.resource"))

    def start(self, *arguments: str) -> subprocess.Popen:
        """The launcher as a process of its own."""
        environment = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        argv = [sys.executable, "-m", "mpt_jax.launch", *arguments]
        return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The launcher to its end: (code, output, what it said)."""
        process = self.start(*arguments)
        output, said = process.communicate(timeout=60)
        return process.returncode, output, said

    def interrupt(self, moment: str, *arguments: str, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Sends the launcher a signal once a call that contains ``moment`` was made."""
        process = self.start(*arguments)
        deadline = time.monotonic() + 30
        while not any(moment in " ".join(call) for call in self.calls):
            assert process.poll() is None and time.monotonic() < deadline, f"{moment!r} was never called"
            time.sleep(0.02)
        time.sleep(0.1)
        process.send_signal(number)
        output, said = process.communicate(timeout=60)
        return process.returncode, output, said


# what the programs themselves use


def opened() -> tuple[Path, dict, str, list[str]]:
    """(state folder, scenario, program, its arguments) of a stand-in that was called; records the call."""
    folder, program, arguments = Path(os.environ["STAND_IN"]), sys.argv[1], sys.argv[2:]
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps([program, *arguments]) + "\n")
    return folder, json.loads((folder / "scenario.json").read_text()), program, arguments


def following(folder: Path, name: str, values: list):
    """The next of values at each call; the last one for ever."""
    counter = folder / f"{name}.count"
    number = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(number + 1))
    return values[min(number, len(values) - 1)]
