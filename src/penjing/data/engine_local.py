"""Worker processes of our own: `python -m penjing.data.engine_worker`, one JSON line in, one JSON line out.

They are fresh interpreters that import only what the function needs, never the user's script, so a script without a
main guard cannot hang. A worker that dies is seen at once as the end of its pipe; its unit is tried once more in a
fresh worker and then named in the fault. A unit that has used no processor time for a while is reported, and given
up after `GIVE_UP_SECONDS`.

Workers that have run functions of this package wait for the next stage, because starting one costs as much as a megabyte of
work in every stage (interpreter, compiled kernels, tables); `KEEP_SECONDS` after the last use they are let go.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from penjing import errors
from penjing.console import say
from penjing.contract import Job
from penjing.data.engine import Function, Unit, place_of, stop_if_asked
from penjing.errors import PenjingError, fault

REPORT_IDLE_SECONDS = 10.0
SLOW_SECONDS, SLOW_TIMES = 60.0, 10.0
"""A unit is called slow when it runs longer than a minute and than ten times the longest other one."""
GIVE_UP_SECONDS = float(os.environ.get("PENJING_GIVE_UP_SECONDS", "900"))
KEEP_SECONDS = 20.0
ATTEMPTS = 2


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    index: int | None = None
    buffer: bytes = b""
    cpu_s: float = 0.0
    began: float = 0.0
    moved: float = 0.0
    reported: bool = False
    called_slow: bool = False
    setting: tuple[object, ...] = ()
    """What it was started under: a worker is used again only where a new one would be the same."""


_spare: list[_Worker] = []
_spare_lock = threading.Lock()
_spare_timer: threading.Timer | None = None


def let_go() -> None:
    """End the workers that wait for another stage."""
    with _spare_lock:
        workers = list(_spare)
        _spare.clear()
    for worker in workers:
        _end(worker)


atexit.register(let_go)


def spare_workers() -> list[int]:
    """Process numbers of the workers that wait for another stage."""
    with _spare_lock:
        return [worker.process.pid for worker in _spare]


def run_processes(function: Function, units: Sequence[Unit], waiting: list[int], *, job: Job,
                  label: str) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) as units finish; at most `job.workers` processes."""
    place = place_of(function)
    queue = sorted(waiting, key=lambda index: (_size(units[index]), -index))  # from its end: the largest first, then in order
    attempts = dict.fromkeys(waiting, 0)
    selector = selectors.DefaultSelector()
    workers: list[_Worker] = []
    keep = place.startswith("penjing.")
    longest = 0.0
    failure: BaseException | None = None
    try:
        while (queue and failure is None) or any(worker.index is not None for worker in workers):
            if job.stop():
                break
            if failure is None:
                while queue and len(workers) < job.workers:
                    workers.append(_take(selector, reuse=keep))
                for worker in workers:
                    if worker.index is None and queue:
                        worker.index = queue.pop()
                        attempts[worker.index] += 1
                        _give(worker, place, units[worker.index])
            for key, _ in selector.select(timeout=0.5):
                worker = key.data
                try:
                    line = _line(worker)
                    if line is None:
                        continue
                    index = worker.index
                    assert index is not None
                    worker.index = None
                    longest = max(longest, time.monotonic() - worker.began)
                    yield index, _answer(line, units[index])
                except _Died:
                    _retire(selector, workers, worker)
                    if worker.index is None:
                        continue
                    what = f"worker died ({_how(worker.process)}) on unit '{units[worker.index]['name']}'"
                    if attempts[worker.index] < ATTEMPTS:
                        say(f"  {label}: {what}; trying it once more in a fresh worker")
                        queue.append(worker.index)
                    else:
                        failure = failure or PenjingError(fault(
                            f"{what}, {ATTEMPTS} times", where=label,
                            fix="too little memory, or input that crashes a library: run with fewer workers, or look "
                            "at that unit's file; everything finished so far is kept"))
                except PenjingError as error:
                    failure = failure or error
            _watch(workers, units, label, longest)
        if failure is not None:
            raise failure
        stop_if_asked(job, label)
    finally:
        for worker in list(workers):
            if keep and worker.index is None and worker.process.poll() is None:
                workers.remove(worker)
                selector.unregister(_pipe(worker.process.stdout))
                _set_aside(worker)
            else:
                _retire(selector, workers, worker)
        selector.close()


class _Died(Exception):  # noqa: N818 - a signal between the two functions below
    pass


def _size(unit: Unit) -> int:
    """Bytes of the shard a unit works on; 0 when it names none."""
    try:
        return Path(unit["shard"]).stat().st_size if isinstance(unit.get("shard"), str) else 0
    except OSError:
        return 0  # the function will say what is wrong with it


def _take(selector: selectors.BaseSelector, *, reuse: bool) -> _Worker:
    """A worker that waits, or a new one."""
    setting = (tuple(sys.path), tuple(sorted(os.environ.items())), Path.cwd())
    while reuse:
        with _spare_lock:
            worker = next((one for one in _spare if one.setting == setting), None)
            if worker is None:
                break
            _spare.remove(worker)
        if worker.process.poll() is None:
            selector.register(_pipe(worker.process.stdout), selectors.EVENT_READ, worker)
            return worker
        _end(worker)
    return _start(selector, setting)


def _set_aside(worker: _Worker) -> None:
    global _spare_timer
    with _spare_lock:
        _spare.append(worker)
        if _spare_timer is not None:
            _spare_timer.cancel()
        _spare_timer = threading.Timer(KEEP_SECONDS, let_go)
        _spare_timer.daemon = True
        _spare_timer.start()


def _start(selector: selectors.BaseSelector, setting: tuple[object, ...]) -> _Worker:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
        environment[name] = "1"
    process = subprocess.Popen([sys.executable, "-m", "penjing.data.engine_worker"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    worker = _Worker(process, moved=time.monotonic(), setting=setting)
    selector.register(process.stdout, selectors.EVENT_READ, worker)
    return worker


def _give(worker: _Worker, place: str, unit: Unit) -> None:
    worker.began = worker.moved = time.monotonic()
    worker.reported = worker.called_slow = False
    pipe = _pipe(worker.process.stdin)
    try:
        pipe.write(json.dumps({"place": place, "unit": unit}).encode() + b"\n")
        pipe.flush()
    except BrokenPipeError:
        return  # its end of the other pipe says so too, and that is where a death is handled


def _line(worker: _Worker) -> bytes | None:
    block = os.read(_pipe(worker.process.stdout).fileno(), 1 << 20)
    if not block:
        raise _Died
    worker.buffer += block
    if b"\n" not in block:
        return None
    line, _, worker.buffer = worker.buffer.partition(b"\n")
    return line


def _answer(line: bytes, unit: Unit) -> Any:
    answer = json.loads(line)
    if "result" in answer:
        return answer["result"]
    kind = getattr(errors, answer["kind"], None)
    if isinstance(kind, type) and issubclass(kind, PenjingError):
        raise kind(answer["text"])
    raise PenjingError(f"unit '{unit['name']}' failed in a worker:\n{answer['text']}")


def _watch(workers: list[_Worker], units: Sequence[Unit], label: str, longest: float) -> None:
    import psutil

    now = time.monotonic()
    for worker in workers:
        if worker.index is None:
            continue
        slow = slow_after(longest)
        if now - worker.began > slow and not worker.called_slow:
            worker.called_slow = True
            say(slow_unit(label, units[worker.index]["name"], now - worker.began, longest))
        if now - worker.moved < min(1.0, REPORT_IDLE_SECONDS / 2):
            continue
        try:
            times = psutil.Process(worker.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        if times.user + times.system > worker.cpu_s + 0.01:
            worker.cpu_s, worker.moved, worker.reported = times.user + times.system, now, False
            continue
        idle, name = now - worker.moved, units[worker.index]["name"]
        if idle > REPORT_IDLE_SECONDS and not worker.reported:
            worker.reported = True
            say(f"  {label}: unit '{name}' has used no processor time for {idle:.0f} s (waiting for a disk or hung); "
                f"given up after {GIVE_UP_SECONDS:.0f} s")
        if idle > GIVE_UP_SECONDS:
            worker.process.kill()


def slow_after(longest: float) -> float:
    """Seconds after which a unit is called slow, when the longest so far took `longest` seconds (0 = none has finished)."""
    return max(SLOW_SECONDS, SLOW_TIMES * longest) if longest else 5 * SLOW_SECONDS


def slow_unit(label: str, name: str, seconds: float, longest: float) -> str:
    """What is said of it."""
    others = f"others took at most {longest:.0f} s" if longest else "none has finished yet"
    return f"  {label}: unit '{name}' has been running for {seconds:.0f} s; {others}. It is busy, not dead: a very large part, or a loop"


def _retire(selector: selectors.BaseSelector, workers: list[_Worker], worker: _Worker) -> None:
    workers.remove(worker)
    selector.unregister(_pipe(worker.process.stdout))
    _end(worker)


def _end(worker: _Worker) -> None:
    """Close its pipes; kill it when it is busy."""
    busy = worker.index is not None
    try:
        _pipe(worker.process.stdin).write(b"\n")  # an empty line ends it, even where a forked process holds the pipe open
        _pipe(worker.process.stdin).close()
    except BrokenPipeError:
        busy = True
    if busy and worker.process.poll() is None:
        try:
            worker.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            worker.process.kill()
    worker.process.wait()
    _pipe(worker.process.stdout).close()


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", often the sign of too little memory" if name == "SIGKILL" else "")
    return f"exit status {code}"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
