"""States of several processes: torch's distributed checkpoint in safetensors files, written beside training.

Every process writes its own shards; the names and the global places of the shards are in the files' headers, so a state can be
read by any other layout, one process included, and a state of one process by any layout.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from penjing.errors import InputError, fault
from penjing.train import staging, state
from penjing.train.distributed import World


class ShardSaver:
    """As `state.Saver`, for several processes. All must call every method together."""

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = folder, keep, world
        self.stalled_s = self.last_s = 0.0
        self._future: Any = None
        self._stager: Stager | None = None
        self._sealing: threading.Thread | None = None
        self._broken: BaseException | None = None

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, wait: bool = False) -> None:
        """Write `tensors` as they are now, in the background; from a GPU they must not change before `settle`."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

        started = time.perf_counter()
        self.wait()
        temporary = self.folder / f"step-{step:08d}.tmp"
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        if self._stager is None and (found := staging.of({name: _local(tensor) for name, tensor in tensors.items()})):
            self._stager = Stager(found)
        stager: Any = self._stager
        saving = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self.world.save_group, async_stager=stager)
        self._future = saving.upload_completion if isinstance(saving, AsyncSaveResponse) else saving
        if self.world.is_main:  # its future is done when everybody's shards are on the disk
            snapshot = json.loads(json.dumps(facts))  # lists in it grow while training goes on
            self._sealing = threading.Thread(target=self._seal, args=(self._future, step, snapshot), name="penjing-seal")
            self._sealing.start()
        if wait:
            self.wait()
        self.last_s = time.perf_counter() - started
        self.stalled_s += self.last_s

    def settle(self) -> None:
        """As `state.Saver.settle`; this process alone."""
        if self._stager is not None:
            seconds = self._stager.staging.settle()
            self.last_s += seconds
            self.stalled_s += seconds

    def wait(self) -> None:
        """Until nothing is being written and what was written has its name."""
        if self._future is None:
            return
        if self._sealing is not None:
            self._sealing.join()
        else:
            with contextlib.suppress(OSError):  # reported by the main process
                _result(self._future)
        self._future, self._sealing = None, None
        self.world.barrier()
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def _seal(self, future: Any, step: int, facts: dict[str, Any]) -> None:
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        try:
            _result(future)
            state.commit(temporary, final, facts)
            state.prune(self.folder, self.keep)
        except OSError as error:
            state.give_up(temporary, step, error)
        except Exception as error:  # a bug: raised where training waits for the thread
            self._broken = error


class Stager:
    """Hands torch's distributed checkpoint what `staging` copies beside training, with the tensors' global places.

    Of torch's `AsyncStager` it has what `async_save` asks of one that gives a promise; its import is heavy.
    """

    def __init__(self, made: staging.Staging) -> None:
        self.staging = made
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penjing-stage")

    def stage(self, state_dict: dict[str, Any]) -> Future[dict[str, Any]]:
        """A promise of copies of `state_dict`; the checkpoint's own thread waits for it."""
        self.staging.begin({name: _local(tensor) for name, tensor in state_dict.items()})
        return self._thread.submit(self._fetch, state_dict)

    def _fetch(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: _placed(copy, tensors[name]) for name, copy in self.staging.fetch().items()}


def _local(tensor: Tensor) -> Tensor:
    """This process's part."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _placed(copy: Tensor, tensor: Tensor) -> Tensor:
    """`copy` of this process's part, as the part of the whole that it is. It stays in the processor's memory: `DTensor.from_local`
    would move it back to the mesh's device."""
    return DTensor(copy, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else copy


def _result(future: Any) -> None:
    """Wait for a distributed save; OSError when a process could not write, RuntimeError when something else went wrong."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        future.result()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        disk = [cause for cause in causes if isinstance(cause, OSError)]
        raise (disk[0] if disk else RuntimeError(str(error))) from error


def read(path: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    """Fill `tensors`, sharded or whole, from a state of any layout; InputError when one is missing."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.tensor import distribute_tensor

    reader = HuggingFaceStorageReader(str(path))
    listed: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    missing = sorted(set(tensors) - set(listed))
    if missing:
        raise InputError(fault("the saved state lacks a tensor", where=path, found=f"no '{missing[0]}'",
                               fix="the settings of what is trained have changed; start in a new directory"))
    targets = dict(tensors)
    seen_otherwise = {name for name, tensor in tensors.items() if tuple(listed[name].size) != tuple(tensor.shape)}
    for name in seen_otherwise:  # cut by parts (tensor.py) in one layout and not in the other: read whole
        targets[name] = torch.empty(tuple(listed[name].size), dtype=tensors[name].dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # as it should be
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
    for name in sorted(seen_otherwise):
        live = tensors[name]
        whole = targets[name].view(live.shape)
        if isinstance(live, DTensor):
            whole = distribute_tensor(whole.to(live.device), live.device_mesh, live.placements, src_data_rank=None)
        live.copy_(whole)
