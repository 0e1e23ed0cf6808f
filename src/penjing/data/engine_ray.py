"""Units as Ray core tasks: one task per unit, results are small JSON values, text stays on shared storage.

Without RAY_ADDRESS a cluster is started on this machine with `job.workers` processors. A task whose worker or node
dies is run again by Ray; units write atomically, so running one twice gives the same files. Ray Data is not used:
on this work it costs about 2.5 times the processor time of core tasks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from penjing.contract import Job
from penjing.data.engine import Function, Unit, call, place_of, stop_if_asked
from penjing.errors import ConfigError, PenjingError, fault

RETRIES = 3


def run_tasks(function: Function, units: Sequence[Unit], waiting: list[int], *, job: Job,
              label: str) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) as tasks finish; at most four waiting tasks per processor are handed to Ray at a time."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(fault("engine 'ray' needs the ray package", fix="pip install 'penjing[ray]'")) from error
    place = place_of(function)
    began = not ray.is_initialized()
    if began:
        _connect(ray, job.workers)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(call)
    ahead = max(4, 4 * int(ray.cluster_resources().get("CPU", 1)))
    queue = list(reversed(waiting))
    running: dict[Any, int] = {}
    try:
        while queue or running:
            stop_if_asked(job, label)
            while queue and len(running) < ahead:
                index = queue.pop()
                running[task.options(name=f"{label}:{units[index]['name']}").remote(place, units[index])] = index
            done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in done:
                index = running.pop(reference)
                yield index, _result(ray, reference, units[index], label)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if began:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    variables = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment = {"env_vars": variables}
    common: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**common)
    else:
        ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=128 << 20, **common)


def _result(ray: Any, reference: Any, unit: Unit, label: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, PenjingError):
            raise cause from None
        raise PenjingError(f"unit '{unit['name']}' failed in a Ray task:\n{error}") from None
    except ray.exceptions.RayError as error:
        raise PenjingError(fault(f"unit '{unit['name']}' was lost {RETRIES + 1} times", where=label,
                                 found=type(error).__name__, fix="look at the node's memory and at that unit's file; "
                                 "everything finished so far is kept")) from error
