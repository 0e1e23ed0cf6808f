"""States of several processes: torch's distributed checkpoint in safetensors files, written beside training.

Every process writes its own shards; the names and the global places of the shards are in the files' headers, so a state can be
read by any other layout, one process included, and a state of one process by any layout.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from penjing import console
from penjing.train import state
from penjing.train.distributed import World


class ShardSaver:
    """As `state.Saver`, for several processes. All must call every method together."""

    def __init__(self, folder: Path, *, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = folder, keep, world
        self.stalled_s = 0.0
        self._future: Any = None
        self._sealing: threading.Thread | None = None

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, wait: bool = False) -> None:
        """Stage `tensors` now, write in the background."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        started = time.perf_counter()
        self.wait()
        temporary = self.folder / f"step-{step:08d}.tmp"
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        self._future = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self.world.save_group)
        if self.world.is_main:  # its future is done when everybody's shards are on the disk
            snapshot = json.loads(json.dumps(facts))  # lists in it grow while training goes on
            self._sealing = threading.Thread(target=self._seal, args=(self._future, step, snapshot), name="penjing-seal")
            self._sealing.start()
        if wait:
            self.wait()
        self.stalled_s += time.perf_counter() - started

    def wait(self) -> None:
        """Until nothing is being written and what was written has its name."""
        if self._future is None:
            return
        if self._sealing is not None:
            self._sealing.join()
        else:
            with contextlib.suppress(OSError):  # reported by the main process
                self._future.result()
        self._future, self._sealing = None, None
        self.world.barrier()

    def _seal(self, future: Any, step: int, facts: dict[str, Any]) -> None:
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.tmp"
        try:
            future.result()
            state.commit(temporary, final, facts)
            state.prune(self.folder, self.keep)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
            console.say(f"  state of step {step} could not be saved ({reason}); older states are kept, training goes on")


def read(path: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    """Fill `tensors`, sharded or whole, from a state of any layout."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
