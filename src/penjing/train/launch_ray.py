"""Training on a Ray cluster: as many workers as the layout needs, wherever the cluster has room, watched as `launch` watches its own.

    python -m penjing.train.launch_ray SPEC [--address auto] [--cpus 1] [--gpus 1]

SPEC is what `penjing.train.launch` takes; `out`, inputs and checkpoints must be on storage that all machines see. A worker is a
process of its own under a Ray actor and dies with it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.errors import ConfigError, PenjingError, fault
from penjing.train.config import ParallelConfig
from penjing.train.launch import until_done


def launch_ray(spec: Mapping[str, Any], *, address: str | None = None, cpus: float = 1, gpus: float = 0) -> None:
    """Run the workers of `spec` on a Ray cluster until they are done; raises what they ended with, as `launch` does.

    `address`: of a running cluster (`auto` finds it); without one a cluster is started on this machine. `cpus` and `gpus` are for
    each process. ConfigError when the cluster is too small.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(fault("Ray is not installed", fix="pip install 'penjing[ray]'")) from error
    processes = ParallelConfig(**spec["config"].get("parallel", {})).world
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=True, include_dashboard=False, configure_logging=False,
                 **({} if address else {"num_cpus": max(processes * int(cpus), os.cpu_count() or 1)}))
    try:
        there = ray.cluster_resources()
        if there.get("CPU", 0) < cpus * processes or there.get("GPU", 0) < gpus * processes:
            raise ConfigError(fault("the Ray cluster is too small for the layout", where="parallel",
                                    found=f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs",
                                    expected=f"{cpus * processes:g} and {gpus * processes:g} for {processes} processes"))
        until_done(lambda: _once(spec, processes, cpus, gpus), Path(spec["out"]), processes)
    finally:
        if started:
            ray.shutdown()


def _once(spec: Mapping[str, Any], processes: int, cpus: float, gpus: float) -> int:
    import ray

    kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker)
    workers = [kind.remote() for _ in range(processes)]
    try:
        host, port = ray.get(workers[0].meeting_place.remote())
        waiting = [worker.work.remote(dict(spec), rank, processes, host, port, bool(gpus), max(1, int(cpus)))
                   for rank, worker in enumerate(workers)]
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                code = ray.get(done[0])
            except ray.exceptions.RayActorError:
                return 1
            if code:
                ray.wait(waiting, num_returns=len(waiting), timeout=5)  # the others may be about to say why
                return int(code)
        return 0
    finally:
        for worker in workers:
            ray.kill(worker)  # and with it its process


class _Worker:
    """A Ray actor that starts one worker process and waits for it."""

    def meeting_place(self) -> tuple[str, int]:
        """Address and free port of this actor's machine."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def work(self, spec: dict[str, Any], rank: int, size: int, host: str, port: int, gpu: bool, threads: int) -> int:
        """Exit code of the process of this rank."""
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port),
                       "LOCAL_RANK": "0", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # Ray shows one GPU each
        return subprocess.run([sys.executable, "-m", "penjing.train.launch", json.dumps(spec)], env=environment).returncode


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m penjing.train.launch_ray", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="JSON, or a file that holds it")
    parser.add_argument("--address", help="of a running cluster; `auto` finds it")
    parser.add_argument("--cpus", type=float, default=1, help="processors per process")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per process")
    given = parser.parse_args()
    text = given.spec if given.spec.lstrip().startswith("{") else Path(given.spec).read_text(encoding="utf-8")
    try:
        launch_ray(json.loads(text), address=given.address, cpus=given.cpus, gpus=given.gpus)
    except PenjingError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
