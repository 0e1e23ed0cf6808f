"""Units as a Slurm job array: task k of T runs every unit whose position is k modulo T and keeps the result in the
state directory, which all nodes must see. The call waits until all results are there; a killed call goes on when
run again.

Environment: PENJING_SBATCH holds further options for sbatch (`--partition=cpu --time=4:00:00 --mem=4G`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from penjing import errors
from penjing.console import say
from penjing.contract import Job
from penjing.data.engine import Function, Unit, call, keep_result, place_of, stop_if_asked
from penjing.errors import ConfigError, PenjingError, fault
from penjing.files import read_json, write_json

POLL_SECONDS = float(os.environ.get("PENJING_SLURM_POLL_SECONDS", "5"))


def run_array(function: Function, units: Sequence[Unit], waiting: list[int], *, job: Job, label: str,
              folder: Path | None) -> Iterator[tuple[int, Any]]:
    """Submit one array of at most `job.workers` tasks at a time, yield (index, result) as result files appear."""
    if folder is None:
        raise ConfigError(fault("engine 'slurm' needs a state directory on shared storage", where=label))
    place = place_of(function)
    work = folder / "slurm"
    for old in work.glob("*.json"):
        old.unlink()
    tasks = min(len(waiting), max(1, job.workers))
    write_json(work / "array.json", {"version": 1, "place": place, "units": [units[index] for index in waiting],
                                     "tasks": tasks, "path": [path for path in sys.path if path]})
    number = _submit(work, tasks=tasks, label=label)
    say(f"  {label}: Slurm job {number}, {len(waiting)} units")
    open_units = {f"{position}.json": index for position, index in enumerate(waiting)}
    try:
        while open_units:
            stop_if_asked(job, label)
            alive = _alive(number)
            for name in [name for name in open_units if (work / name).is_file()]:
                yield open_units[name], _answer(work / name, units[open_units[name]])
                del open_units[name]
            if open_units and not alive and not any((work / name).is_file() for name in open_units):
                lost = sorted(units[index]["name"] for index in open_units.values())
                raise PenjingError(fault(
                    f"Slurm job {number} ended without {len(lost)} of {len(waiting)} units", where=label,
                    found=f"first missing '{lost[0]}'", fix=f"see {work}/*.out, then run the same command again; "
                    "finished units are kept"))
            if open_units:
                time.sleep(POLL_SECONDS)
    except BaseException:
        subprocess.run(["scancel", number], check=False, capture_output=True)
        raise


def run_task(work: Path, task: int) -> None:
    """What one array task does."""
    array = read_json(work / "array.json")
    sys.path.extend(path for path in array["path"] if path not in sys.path)
    for position in range(task, len(array["units"]), array["tasks"]):
        unit = array["units"][position]
        try:
            result = json.loads(json.dumps(call(array["place"], unit)))
            keep_result(work.parent, array["place"], unit, result)
            answer = {"result": result}
        except PenjingError as error:
            answer = {"kind": type(error).__name__, "text": str(error)}
        write_json(work / f"{position}.json", answer)


def _submit(work: Path, *, tasks: int, label: str) -> str:
    command = ["sbatch", "--parsable", f"--array=0-{tasks - 1}", f"--job-name=penjing-{label}".replace(" ", "-"),
               "--ntasks=1", "--cpus-per-task=1", f"--output={work}/%a.out",
               *shlex.split(os.environ.get("PENJING_SBATCH", "")),
               "--wrap", shlex.join([sys.executable, "-m", "penjing.data.engine_slurm", str(work)])]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ConfigError(fault("engine 'slurm' needs sbatch on the PATH", where=label)) from error
    except subprocess.CalledProcessError as error:
        found = error.stderr.strip()[:300]
        raise ConfigError(fault("sbatch refused the job array", where=label, found=found)) from error
    return done.stdout.strip().split(";")[0]


def _alive(number: str) -> bool:
    done = subprocess.run(["squeue", "--noheader", "--job", number], check=False, capture_output=True, text=True)
    return done.returncode == 0 and bool(done.stdout.strip())


def _answer(path: Path, unit: Unit) -> Any:
    answer = read_json(path)
    if "result" in answer:
        return answer["result"]
    kind = getattr(errors, answer["kind"], PenjingError)
    raise kind(answer["text"])


if __name__ == "__main__":
    run_task(Path(sys.argv[1]), int(os.environ["SLURM_ARRAY_TASK_ID"]))
