"""A state saved beside training holds the values of the call, in memory that is taken once.

Streams are played by threads that work off what was put on them, in order, as a GPU does; nothing on them runs before its gate opens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from penjing.train import shards, staging, state
from penjing.train.config import ParallelConfig
from penjing.train.distributed import World

LONG = 20.0
"""Seconds after which a test that hangs gives up."""


class Moment:
    """An event of a stream."""

    def __init__(self) -> None:
        self._come = threading.Event()

    def set(self) -> None:
        self._come.set()

    def synchronize(self) -> None:
        assert self._come.wait(LONG)


class Stream:
    """Works off what is put on it, in order, once its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self._work: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], Any]) -> None:
        self._work.put(work)

    def end(self) -> None:
        self.gate.set()
        self._work.put(None)
        self._thread.join(LONG)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            assert self.gate.wait(LONG)
            work()


class Lane:
    """A device of threads; all tensors lie on it."""

    def __init__(self) -> None:
        self.training, self.side = Stream(), Stream()
        self.taken: list[int] = []
        self.asked = 0
        self.copies = 0
        self.refuses_from: int | None = None
        self.before_memory: Callable[[], Any] = lambda: None

    def holds(self, tensor: Tensor) -> bool:
        return True

    def mark(self) -> Moment:
        moment = Moment()
        self.training.put(moment.set)
        return moment

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], *, after: Moment) -> Moment:
        self.side.put(after.synchronize)
        for to, source in pairs:
            self.copies += 1
            self.side.put(partial(to.copy_, source))
        moment = Moment()
        self.side.put(moment.set)
        return moment

    def hold(self, event: Moment) -> None:
        self.training.put(event.synchronize)

    def page_locked(self, size: int) -> Tensor:
        self.before_memory()
        self.asked += 1
        if self.refuses_from is not None and self.asked > self.refuses_from:
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        self.taken.append(size)
        return torch.zeros(size, dtype=torch.uint8)


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lane]:
    made = Lane()
    monkeypatch.setattr(staging, "of", lambda tensors: staging.Staging(made))
    yield made
    made.training.end()
    made.side.end()


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"model.a": torch.randn(33, 7, generator=generator), "exp_avg.a": torch.zeros(33, 7),
            "model.scale": torch.tensor(2.5), "model.empty": torch.zeros(0, 4),
            "model.low": torch.randn(5, generator=generator).bfloat16(), "model.flags": torch.tensor([True, False, True])}


def read(folder: Path, step: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found = state.newest(folder)
    assert found is not None and found.facts["step"] == step
    return load_file(found.path / state.TENSORS)


def assert_holds(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("settles", [True, False])
def test_values_are_those_of_the_call(tmp_path: Path, lane: Lane, settles: bool) -> None:
    """An update that is in the queue when `save` is called is in the state, one after `settle` is not. Without `settle` it is."""
    live, saver = tensors(), state.Saver(tmp_path, keep=1)
    lane.training.put(lambda: live["model.a"].fill_(3.0))  # has not run when save is called
    saver.save(1, live, {"step": 1})
    if settles:
        saver.settle()
    updated = Moment()
    lane.training.put(lambda: live["model.a"].fill_(4.0))
    lane.training.put(updated.set)
    lane.training.gate.set()
    if not settles:
        updated.synchronize()  # nothing held it back
    lane.side.gate.set()
    saver.wait()
    updated.synchronize()
    assert (live["model.a"] == 4.0).all()
    assert (read(tmp_path, 1)["model.a"] == (3.0 if settles else 4.0)).all()


def test_neither_save_nor_settle_waits_for_the_copies(tmp_path: Path, lane: Lane) -> None:
    live, saver = tensors(), state.Saver(tmp_path, keep=1)
    saver.save(1, live, {"step": 1})
    saver.settle()  # both gates are shut
    assert lane.copies == len(live) and not list(tmp_path.glob("step-*[0-9]"))
    lane.training.gate.set()
    lane.side.gate.set()
    saver.wait()
    assert_holds(read(tmp_path, 1), live)
    before = saver.stalled_s
    saver.settle()  # nothing left
    assert saver.stalled_s == before and saver.last_s <= saver.stalled_s


def test_the_bytes_are_those_of_a_processor(tmp_path: Path, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    lane.training.gate.set()
    lane.side.gate.set()
    live = tensors()
    live["model.turned"] = torch.arange(6.0).view(2, 3)
    beside = state.Saver(tmp_path / "beside", keep=1)
    beside.save(1, live, {"step": 1}, wait=True)
    monkeypatch.undo()
    assert staging.of(live) is None
    plain = state.Saver(tmp_path / "plain", keep=1)
    plain.save(1, live, {"step": 1})
    live["model.a"].fill_(9.0)  # at once: a processor copies before save returns
    plain.settle()
    plain.wait()
    assert plain._staging is None
    for name in (state.TENSORS, "state.json"):
        one, other = (tmp_path / kind / "step-00000001" / name for kind in ("beside", "plain"))
        assert one.read_bytes() == other.read_bytes()


def test_memory_is_taken_once_and_not_used_before_the_writer_is_done(tmp_path: Path, lane: Lane) -> None:
    lane.training.gate.set()
    lane.side.gate.set()
    writing, may_end = threading.Event(), threading.Event()
    seen: list[tuple[float, float, int]] = []

    def write(path: Path, copies: dict[str, Tensor]) -> None:
        first = float(copies["model.a"][0, 0])
        writing.set()
        assert may_end.wait(LONG)
        seen.append((first, float(copies["model.a"][0, 0]), copies["model.a"].data_ptr()))
        state.write_whole(path, copies)

    live, saver = tensors(), state.Saver(tmp_path, keep=2, write=write)
    live["model.a"].fill_(1.0)
    saver.save(1, live, {"step": 1})
    assert writing.wait(LONG)
    saver.settle()
    live["model.a"].fill_(2.0)
    second = threading.Thread(target=saver.save, args=(2, live, {"step": 2}))
    second.start()
    second.join(0.1)
    assert second.is_alive() and lane.copies == len(live)  # waits for the writer, nothing is copied
    may_end.set()
    second.join(LONG)
    saver.wait()
    assert [pair[:2] for pair in seen] == [(1.0, 1.0), (2.0, 2.0)]
    assert seen[0][2] == seen[1][2] and len(lane.taken) == 1 and lane.copies == 2 * len(live)
    assert (read(tmp_path, 2)["model.a"] == 2.0).all()
    live["model.more"] = torch.ones(3)  # something else is trained: the memory no longer fits
    saver.save(3, live, {"step": 3}, wait=True)
    assert len(lane.taken) == 2 and (read(tmp_path, 3)["model.more"] == 1.0).all()


def test_settle_waits_until_there_is_memory(tmp_path: Path, lane: Lane) -> None:
    """The copies are on no stream before there is memory for them: only the processor can be held back."""
    lane.training.gate.set()
    lane.side.gate.set()
    memory = threading.Event()
    lane.before_memory = lambda: memory.wait(LONG)
    live, saver = tensors(), state.Saver(tmp_path, keep=1)
    saver.save(1, live, {"step": 1})
    settled = threading.Thread(target=saver.settle)
    settled.start()
    settled.join(0.05)
    assert settled.is_alive() and lane.copies == 0
    memory.set()
    settled.join(LONG)
    assert not settled.is_alive() and lane.copies == len(live)
    assert saver.last_s >= 0.05 and saver.stalled_s == saver.last_s
    saver.wait()


@pytest.mark.parametrize("had", [0, 1])
def test_without_page_locked_memory_it_is_said_once(tmp_path: Path, lane: Lane, had: int, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    lane.training.gate.set()
    lane.side.gate.set()
    lane.refuses_from = had
    monkeypatch.setattr(staging.pieces_of, "__kwdefaults__", {"limit": 1024})
    live, saver = tensors(), state.Saver(tmp_path, keep=1)
    for step in (1, 2):
        live["model.a"].fill_(float(step))
        saver.save(step, live, {"step": step})
        saver.settle()
        saver.wait()
        assert_holds(read(tmp_path, step), live)
    assert lane.asked == had + 1 and len(lane.taken) == had
    said = capsys.readouterr().err
    assert said.count("no page-locked memory") == 1 and "(CUDA error: out of memory);" in said


def test_a_copy_that_fails_is_raised_where_training_waits(tmp_path: Path, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Moment:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(lane, "copy", broken)
    saver = state.Saver(tmp_path, keep=1)
    saver.save(1, tensors(), {"step": 1})
    saver.settle()
    with pytest.raises(RuntimeError, match="the device is lost"):
        saver.wait()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_hold_training_back(tmp_path: Path, lane: Lane, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    saver = state.Saver(tmp_path / "state", keep=1)
    saver.save(1, tensors(), {"step": 1})
    saver.settle()
    lane.training.gate.set()
    lane.side.gate.set()
    saver.wait()
    assert "state of step 1 could not be saved" in capsys.readouterr().err


def test_pieces_hold_whole_tensors() -> None:
    sizes = {"a": 300, "b": 512, "c": 5000, "d": 0, "e": 256, "f": 1}
    assert staging.pieces_of(sizes, limit=1024) == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert staging.pieces_of({}) == []


def test_memory_is_locked_by_whole_pages_and_unlocked_when_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: dict[int, int] = {}

    def register(pointer: int, size: int, flags: int) -> int:
        locked[pointer] = size
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=locked.pop)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    lane = staging.CudaLane.__new__(staging.CudaLane)
    lane.device = torch.device("cpu")
    made = staging.Staging(lane)
    places = made._take({"a": torch.zeros(1000), "b": torch.zeros(3, dtype=torch.bfloat16)})
    (pointer,) = locked
    assert pointer % staging.PAGE == 0 and locked[pointer] == 8192
    assert places["a"].data_ptr() == pointer and places["b"].data_ptr() == pointer + 4096
    assert [place.untyped_storage().nbytes() for place in places.values()] == [4000, 6]  # else torch copies them before it writes
    del places["a"]
    assert locked
    places.clear()
    assert not locked
    runtime.cudaHostRegister = lambda *_: 2
    asked: list[dict[str, Any]] = []
    real = torch.empty

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        asked.append({"size": size, "pin_memory": pin_memory})
        return real(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    assert lane.page_locked(4096).nbytes == 4096
    assert asked == [{"size": 4096, "pin_memory": True}] and not locked


def test_sharded_states_are_staged_the_same_way(tmp_path: Path, lane: Lane) -> None:
    """One process of a group: what torch's distributed checkpoint writes are the values of the call, in the same memory again."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    lane.training.gate.set()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cut = distribute_tensor(torch.arange(12.0).view(4, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
        live: dict[str, Tensor] = {"model.cut": cut, "model.whole": torch.ones(5)}
        saver = shards.ShardSaver(tmp_path, keep=2, world=World(0, 1, torch.device("cpu"), ParallelConfig.model_validate({})))
        for step in (1, 2):
            wanted = torch.arange(12.0).view(4, 3) + 100 * (step - 1)
            saver.save(step, live, {"step": step})
            saver.settle()
            changed = Moment()
            lane.training.put(lambda: cut.to_local().add_(100.0))
            lane.training.put(changed.set)
            lane.side.gate.set()
            saver.wait()
            changed.synchronize()
            found = state.newest(tmp_path)
            assert found is not None and found.facts["step"] == step
            read = {"model.cut": torch.zeros(4, 3), "model.whole": torch.zeros(5)}
            shards.read(found.path, read, alone=True)
            assert torch.equal(read["model.cut"], wanted) and torch.equal(read["model.whole"], torch.ones(5))
        assert len(lane.taken) == 1
    finally:
        dist.destroy_process_group()
