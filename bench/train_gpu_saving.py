"""How long saving a state holds training up on a GPU, the old way and beside training, and whether the file is right. One command:

    python bench/train_gpu_saving.py --gigabytes 12
    python bench/train_gpu_saving.py --tiny         the same lines on a processor, where copies are made at once

Training is played by matrix products and an update of all tensors after each step's. `stall_s` is what a save adds to the steps
it falls in: `old` copies one tensor after another into ordinary memory, `first` takes page-locked memory and copies beside the
products, `second` has the memory already. `host_s` is how long the processor itself waited. `right`: the files hold the tensors as
they were when `save` was called, bit for bit, although the tensors were changed as soon as `settle` was called (`first`: every
fourth tensor is looked at). States go to /dev/shm where there is room, so that no disk is measured. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from penjing.train import state

ROW = 8192
SHARED = Path("/dev/shm")


class Training:
    """Matrix products, then an update in place of tensors that are named as a state's are."""

    def __init__(self, device: torch.device, *, bytes_: int, tiny: bool) -> None:
        width = 64 if tiny else ROW
        kind = torch.float32 if tiny else torch.bfloat16
        self.device, self.products = device, 2 if tiny else 120
        count = max(1, round(bytes_ / 3 / (4 * width * width)))
        generator = torch.Generator(device).manual_seed(0)
        self.tensors = {f"{part}.layers.{number}.weight": torch.randn(width, width, device=device, generator=generator)
                        for number in range(count) for part in ("model", "exp_avg", "exp_avg_sq")}
        self.bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self._a = torch.randn(width, width, device=device, generator=generator).to(kind)
        self._b, self._c = self._a.T.contiguous(), torch.empty_like(self._a)

    def steps(self, count: int, settle: Callable[[], None] = lambda: None) -> None:
        for _ in range(count):
            for _ in range(self.products):
                torch.mm(self._a, self._b, out=self._c)
            settle()
            torch._foreach_add_(list(self.tensors.values()), 1.0)
            self.wait()  # as a loop does that reads its loss

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def snapshot(self, every: int) -> dict[str, Tensor]:
        return {name: tensor.clone() for number, (name, tensor) in enumerate(self.tensors.items()) if number % every == 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=12.0, help="of the state: weights and both moments")
    parser.add_argument("--steps", type=int, default=4, help="after each save")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON line, as always")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here, and on a processor nothing is copied beside training; --tiny tries the lines")
    began = time.perf_counter()
    device = torch.device("cpu") if given.tiny else torch.device("cuda", 0)
    training = Training(device, bytes_=10**6 if given.tiny else int(given.gigabytes * 1e9), tiny=given.tiny)
    roomy = SHARED.is_dir() and os.access(SHARED, os.W_OK) and shutil.disk_usage(SHARED).free > 1.2 * training.bytes
    with tempfile.TemporaryDirectory(dir=SHARED if roomy else None) as folder:
        found = measure(training, Path(folder), given.steps)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(json.dumps({"benchmark": "train_gpu_saving", "device": kind, "torch": torch.__version__, "cores": os.cpu_count(),
                      "gigabytes": round(training.bytes / 1e9, 3), "tensors": len(training.tensors),
                      "to": str(SHARED) if roomy else "a temporary directory on a disk", **found,
                      "seconds": round(time.perf_counter() - began, 2)}))


def measure(training: Training, folder: Path, steps: int) -> dict[str, Any]:
    """Seconds of a step, and what a save adds to `steps` of them, by each way."""
    training.steps(2)
    began = time.perf_counter()
    training.steps(steps)
    step = (time.perf_counter() - began) / steps

    began = time.perf_counter()
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in training.tensors.items()}
    host = time.perf_counter() - began
    training.steps(steps)
    found: dict[str, Any] = {"step_s": round(step, 4), "old": figures(time.perf_counter() - began - steps * step, host)}
    del copies
    gc.collect()

    saver = state.Saver(folder, keep=1)
    right = True
    for number, (name, every) in enumerate((("first", 4), ("second", 1)), start=1):
        wanted = training.snapshot(every)
        training.wait()
        before, began = saver.stalled_s, time.perf_counter()
        saver.save(number, training.tensors, {"step": number})
        training.steps(steps, saver.settle)
        seconds = time.perf_counter() - began
        found[name] = figures(seconds - steps * step, saver.stalled_s - before)
        saver.wait()
        found[name]["written_after_s"] = round(time.perf_counter() - began, 2)
        right = holds(folder / f"step-{number:08d}" / state.TENSORS, wanted) and right
        del wanted
        shutil.rmtree(folder / f"step-{number:08d}")
    staging = saver._staging
    found["page_locked"] = staging is not None and not staging._refused
    found["right"] = right
    return found


def figures(stall: float, host: float) -> dict[str, float]:
    return {"stall_s": round(stall, 4), "host_s": round(host, 4)}


def holds(file: Path, wanted: dict[str, Tensor]) -> bool:
    """Whether the tensors in `file` are `wanted`, bit for bit."""
    device = next(iter(wanted.values())).device
    with safe_open(str(file), framework="pt") as opened:
        return all(torch.equal(opened.get_tensor(name).to(device), tensor) for name, tensor in wanted.items())


if __name__ == "__main__":
    main()
