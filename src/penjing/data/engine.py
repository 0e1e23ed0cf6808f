"""Runs one function over many units of work, on one machine or many, with the same results.

A unit is a JSON object with a "name"; the function is a module-level one, takes the unit and returns a JSON value.
Each unit writes its own output under its final name only when it is whole. With `state` (a directory) the engine
keeps every finished unit's result there, so that an interrupted run goes on where it stopped, whatever the number
of workers or the engine was.

    local    processes started by us (no fork, no `__main__` guard needed); one worker runs in this process
    thread   threads, for functions that spend their time in compiled code
    ray      Ray core tasks, on this machine or on the cluster that RAY_ADDRESS names; `state` on shared storage
    slurm    one Slurm job array per call; `state` on shared storage
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from penjing.console import bar
from penjing.contract import Job
from penjing.errors import ConfigError, Interrupted, PenjingError, fault
from penjing.files import hash_text, read_json, write_text
from penjing.lookup import did_you_mean

Unit = dict[str, Any]
Function = Callable[[Unit], Any]
ENGINES = ("local", "thread", "ray", "slurm")


def map_shards(function: Function, units: Iterable[Mapping[str, Any]], *, job: Job, label: str,
               state: Path | None = None) -> list[Any]:
    """The results of `function` over `units`, in the order of the units.

    A unit that raises a penjing fault ends the run with that fault; one that raises anything else, or whose worker
    dies twice, ends it with the unit's name and the cause. Units that run beside it are finished first and kept.
    Raises Interrupted when the job is asked to stop.
    """
    if job.engine not in ENGINES:
        raise ConfigError(fault(f"unknown engine '{job.engine}'", expected=f"one of {', '.join(ENGINES)}",
                                fix=did_you_mean(job.engine, ENGINES)))
    todo = [_plain(unit, index) for index, unit in enumerate(units)]
    names = [unit["name"] for unit in todo]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{label}: two units are called {twice!r}")
    folder = state / _safe(label) if state is not None else None
    results: dict[int, Any] = {}
    for index, unit in enumerate(todo):
        stored = _stored(folder, function, unit)
        if stored is not None:
            results[index] = stored["result"]
    waiting = [index for index in range(len(todo)) if index not in results]
    with bar(label, total=len(todo), unit="parts") as progress:
        progress.advance(len(results))
        for index, result in _run(function, todo, waiting, job=job, label=label, folder=folder):
            results[index] = json.loads(json.dumps(result))
            if folder is not None:
                keep_result(folder, function, todo[index], results[index])
            progress.advance(1, unit=names[index])
    return [results[index] for index in range(len(todo))]


def _run(function: Function, units: Sequence[Unit], waiting: list[int], *, job: Job, label: str,
         folder: Path | None) -> Iterator[tuple[int, Any]]:
    if not waiting:
        return
    if job.engine == "slurm":
        from penjing.data.engine_slurm import run_array

        yield from run_array(function, units, waiting, job=job, label=label, folder=folder)
    elif job.engine == "ray":
        from penjing.data.engine_ray import run_tasks

        yield from run_tasks(function, units, waiting, job=job, label=label)
    elif job.workers <= 1 or (len(waiting) == 1 and job.engine == "local"):
        from penjing.data.engine_watch import watched

        for index in waiting:
            stop_if_asked(job, label)
            with watched(label, units[index]["name"]):
                result = function(units[index])
            yield index, result
    elif job.engine == "thread":
        yield from _threads(function, units, waiting, job=job, label=label)
    else:
        from penjing.data.engine_local import run_processes

        yield from run_processes(function, units, waiting, job=job, label=label)


def _threads(function: Function, units: Sequence[Unit], waiting: list[int], *, job: Job,
             label: str) -> Iterator[tuple[int, Any]]:
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    queue = list(reversed(waiting))
    with ThreadPoolExecutor(job.workers, thread_name_prefix=label) as pool:
        running: dict[Future[Any], int] = {}
        while queue or running:
            if job.stop():
                break
            while queue and len(running) < job.workers:
                index = queue.pop()
                running[pool.submit(function, units[index])] = index
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    stop_if_asked(job, label)


def stop_if_asked(job: Job, label: str) -> None:
    """Raise Interrupted when the user asked to stop."""
    if job.stop():
        raise Interrupted(f"{label}: stopped on request; the same command goes on from here")


def place_of(function: Function) -> str:
    """`module:name` of a function that another process can import; a plain error, not a hang, when it cannot."""
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", "")
    if module == "__main__" or not re.fullmatch(r"\w+", name):
        raise PenjingError(fault(
            f"'{name}' cannot be run in worker processes", where=module,
            expected="a function at the top of an importable module",
            fix="move it out of the script into a module, or use one worker"))
    return f"{module}:{name}"


def call(place: str, unit: Unit) -> Any:
    """Run the function at `module:name` on a unit (what a worker does)."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)(unit)


def keep_result(folder: Path, function: Function | str, unit: Unit, result: Any) -> None:
    """Keep a finished unit's result in the state directory."""
    text = json.dumps({"unit": _key(function, unit), "result": result}, ensure_ascii=False)
    write_text(folder / f"{_safe(unit['name'])}.json", text)


def _stored(folder: Path | None, function: Function, unit: Unit) -> dict[str, Any] | None:
    if folder is None:
        return None
    path = folder / f"{_safe(unit['name'])}.json"
    if not path.is_file():
        return None
    stored = read_json(path)
    return stored if stored.get("unit") == _key(function, unit) else None


def _key(function: Function | str, unit: Unit) -> str:
    place = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    return hash_text(place + json.dumps(unit, sort_keys=True))


def _plain(unit: Mapping[str, Any], index: int) -> Unit:
    plain: Unit = json.loads(json.dumps({"name": f"{index:05d}", **unit}, default=_path))
    return plain


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a unit holds {type(value).__name__}; units are JSON values and paths")


def _safe(name: str) -> str:
    cleaned = re.sub(r"[^\w.-]+", "-", name)
    return cleaned if cleaned == name and len(name) < 120 else f"{cleaned[:80]}-{hash_text(name)[:12]}"
