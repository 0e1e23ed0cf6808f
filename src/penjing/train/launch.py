"""Our own launcher for one machine: as many processes as the layout needs, watched, and started again together.

torchrun's restarts are unreliable under gloo after a process is killed, and its workers outlive a killed agent. Here a worker dies
with its launcher (the kernel sees to it), the loss of one worker ends all, and all start again from the last saved state, as long
as each try gets further than the one before. Use torchrun, Slurm or Ray for several machines (docs/train.md); the worker is the
same.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penjing import console, lookup
from penjing.contract import Job
from penjing.errors import ConfigError, GateError, InputError, Interrupted, PenjingError, fault

WORK = "penjing.stages.train:work"
"""What a worker does with its spec, by name: this room lies below the stages."""
_FAULTS: dict[int, type[PenjingError]] = {kind.exit_code: kind for kind in (ConfigError, InputError, GateError, Interrupted)}


def launch(spec: Mapping[str, Any], *, processes: int, job: Job, threads: int | None = None) -> None:
    """Run `penjing.train.launch` with `spec` in `processes` processes until they are done.

    Raises what the workers ended with: ConfigError, InputError, GateError or Interrupted by their exit codes; GateError when a
    worker is lost twice without a step in between.
    """
    until_done(lambda: _once(spec, processes, job, threads), Path(spec["out"]), processes)


def until_done(once: Callable[[], int], out: Path, processes: int) -> None:
    """Call `once`, which starts all processes and gives an exit code, until it is 0; faults as `launch` says."""
    reached = -1
    while True:
        code = once()
        if code == 0:
            return
        if code in _FAULTS:
            where = out / "state" / "fault.txt"
            text = where.read_text(encoding="utf-8") if where.is_file() else f"a worker ended with exit code {code}"
            raise _FAULTS[code](text)
        now = max([int(path.name[5:]) for path in (out / "state").glob("step-*[0-9]")], default=0)
        if now <= reached:
            raise GateError(fault("a worker was lost again before the run got further", where=out, found=f"exit code {code} at "
                                  f"step {now}", fix="see the messages above; the saved state is kept"))
        reached = now
        console.say(f"  a worker was lost (exit code {code}); all {processes} start again from step {now}")


def _once(spec: Mapping[str, Any], processes: int, job: Job, threads: int | None) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    share = threads or max(1, (os.cpu_count() or 1) // processes)
    common = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "penjing.train.launch", json.dumps(spec)]
    workers = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]
    flag = Path(spec["out"]) / "state" / "stop"
    try:
        while True:
            codes = [worker.poll() for worker in workers]
            failed = [code for code in codes if code not in (None, 0)]
            if failed:
                known = [code for code in failed if code in _FAULTS]
                return int(known[0] if known else failed[0] or 1)
            if all(code == 0 for code in codes):
                return 0
            if job.stop() and not flag.exists():
                flag.parent.mkdir(parents=True, exist_ok=True)
                flag.touch()
            time.sleep(0.05)
    finally:
        deadline = time.monotonic() + 5  # the others notice a fault by themselves, or wait for the one that is gone
        for worker in workers:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        flag.unlink(missing_ok=True)


def main() -> None:
    """`python -m penjing.train.launch SPEC`: a worker of `launch`, of torchrun or of srun. SPEC is JSON or a file that holds it."""
    from penjing.train.distributed import die_with_parent

    die_with_parent()
    given = sys.argv[1]
    spec = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8"))
    if os.environ.get("RANK", "0") == "0":
        for old in ("fault.txt", "stop"):
            (Path(spec["out"]) / "state" / old).unlink(missing_ok=True)
    try:
        lookup.attribute(spec.get("work", WORK), what="worker")(spec)
    except PenjingError as error:
        _tell(Path(spec["out"]) / "state" / "fault.txt", error)
        os._exit(error.exit_code)  # the others may be waiting in a collective: leave without saying goodbye


def _tell(place: Path, error: PenjingError) -> None:
    """Say a fault once: the main process at once, another only when the main process has none."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(1.0)
        if place.is_file():
            return
    place.parent.mkdir(parents=True, exist_ok=True)
    text = str(error) if rank == "0" else f"process {rank}: {error}"
    place.write_text(text, encoding="utf-8")
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
