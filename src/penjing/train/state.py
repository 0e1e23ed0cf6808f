"""What a run needs to go on from where it stopped, saved beside training and committed by rename.

    state/step-00000200/tensors.safetensors    weights and AdamW's moments of what is trained, named after the parameters
    state/step-00000200/state.json             step, data cursor, tokens, guard, curve, hashes of the files; written last
    state/step-00000200.tmp/                   being written; never read

From a GPU the copies are made beside training, which must call `settle` before it changes weights or moments (staging.py).
A layout over several processes writes one file of shards each (shards.py) under the same names, so any layout reads any other.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penjing import console
from penjing.errors import InputError, fault
from penjing.files import hash_file, read_json, write_json
from penjing.train import staging

VERSION = 1
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Saved:
    """A state found on disk whose files are what they were when they were written."""

    path: Path
    facts: dict[str, Any]


def newest(folder: Path) -> Saved | None:
    """The newest state that reads back well; damaged ones are named and passed over. None when there is none."""
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        wrong = damage(path)
        if wrong is None:
            return Saved(path, read_json(path / "state.json"))
        console.say(f"  the saved state {path.name} is damaged ({wrong}); going back to the one before it")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a saved state, or None."""
    try:
        facts = read_json(path / "state.json")
        if facts.get("version") != VERSION:
            return f"version {facts.get('version')} instead of {VERSION}"
        for name, digest in facts["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if hash_file(path / name) != digest:
                return f"{name} does not match its hash"
    except (InputError, KeyError, TypeError, AttributeError, OSError) as error:
        return str(error)
    return None


def tensors_of(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Live tensors of a state by name: `model.<parameter>`, `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        found[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:  # before the first step: the moments AdamW would start from
            state.update(step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                         exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        found[f"exp_avg.{name}"], found[f"exp_avg_sq.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    return found


def set_optimizer_step(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], step: int) -> None:
    """How many updates AdamW has made, which its bias correction depends on."""
    for parameter in parameters.values():
        optimizer.state[parameter]["step"].fill_(step)


def write_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """All tensors of one process into `path`, flushed to the disk. OSError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, str(path / TENSORS))
    except SafetensorError as error:  # the library keeps the system's error in its text only
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    with (path / TENSORS).open("rb") as file:
        os.fsync(file.fileno())


def read_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` from a state written by one process."""
    from safetensors import safe_open

    with safe_open(str(path / TENSORS), framework="pt") as file:
        missing = sorted(set(tensors) - set(file.keys()))
        if missing:
            raise InputError(fault("the saved state lacks a tensor", where=path, found=f"no '{missing[0]}'",
                                   fix="the settings of what is trained have changed; start in a new directory"))
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))


class Saver:
    """Writes states in a thread; at most one at a time."""

    def __init__(self, folder: Path, *, keep: int, write: Callable[[Path, dict[str, Tensor]], None] = write_whole) -> None:
        self.folder = folder
        self.keep = keep
        self._write = write
        self._thread: threading.Thread | None = None
        self._staging: staging.Staging | None = None
        self._broken: BaseException | None = None
        self.stalled_s = 0.0
        """Seconds training has waited for saving."""
        self.last_s = 0.0
        """Of these, the seconds of the last state."""

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, wait: bool = False) -> None:
        """Write `tensors` as they are now, in the background. A full disk is reported and leaves older states alone.

        From a processor they are copied before this returns; from a GPU they must not change before `settle`.
        """
        started = time.perf_counter()
        self.wait()
        if self._staging is None:
            self._staging = staging.of(tensors)
        copies = None
        if self._staging is None:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        else:
            self._staging.begin(tensors)
        self._thread = threading.Thread(target=self._commit, args=(step, copies, json.loads(json.dumps(facts))),
                                        name="penjing-save", daemon=False)
        self._thread.start()
        if wait:
            self.wait()
        self.last_s = time.perf_counter() - started
        self.stalled_s += self.last_s

    def settle(self) -> None:
        """Call before weights or moments change: what comes next on the GPU waits for the copies. Free when there are none."""
        if self._staging is not None:
            seconds = self._staging.settle()
            self.last_s += seconds
            self.stalled_s += seconds

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong beside the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def _commit(self, step: int, copies: dict[str, Tensor] | None, facts: dict[str, Any]) -> None:
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"step-{step:08d}.tmp"
        try:
            if copies is None and self._staging is not None:
                copies = self._staging.fetch()  # before anything else can fail: training waits for it in `settle`
            assert copies is not None
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._write(temporary, copies)
            commit(temporary, final, facts)
            prune(self.folder, self.keep)
        except OSError as error:
            give_up(temporary, step, error)
        except Exception as error:  # a bug: raised where training waits for the thread
            self._broken = error


def commit(temporary: Path, final: Path, facts: dict[str, Any]) -> None:
    """Seal a written state with its hashes and give it its name."""
    files = {file.name: hash_file(file) for file in sorted(temporary.iterdir()) if file.name != "state.json"}
    write_json(temporary / "state.json", {"version": VERSION, **facts, "files": files})
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync_folder(final.parent)


def give_up(temporary: Path, step: int, error: OSError) -> None:
    """Say that a state could not be saved and clear away what there is of it; older ones stay."""
    shutil.rmtree(temporary, ignore_errors=True)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "the disk is full" if full else str(error)
    console.say(f"  state of step {step} could not be saved ({reason}); older states are kept, training goes on")


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    for old in sorted(folder.glob("step-*[0-9]"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
