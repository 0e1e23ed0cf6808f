"""Every layout over processes gives the losses of one process, and reads every other layout's state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from penjing.contract import Job
from penjing.errors import Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.train.config import TrainConfig
from penjing.train.distributed import die_with_parent
from penjing.train.loop import train
die_with_parent()
spec = json.loads(sys.argv[1])
out = Path(spec["out"])
out.mkdir(parents=True, exist_ok=True)
calls = iter(range(1, 10**6))
stream = build_stream(StreamConfig(**spec["stream"]), Path(spec["tokens"]))
try:
    train(TrainConfig(**spec["config"]), checkpoint=Path(spec["checkpoint"]), stream=stream, out=out,
          job=Job(metrics=out / "metrics.jsonl", stop=lambda: next(calls) >= spec.get("stop", 10**6)))
except Interrupted:
    pass
"""
STREAM = {"sequence_length": 64, "batch_rows": 4, "packing": "best-fit"}
SETTINGS = {"tokens": 4400, "lr": 1e-2, "precision": "fp32", "micro_rows": 2, "save_every": 100}


def run(out: Path, checkpoint: Path, tokens: Path, *, stop: int | None = None, stream: dict | None = None,
        **more: object) -> list[dict]:
    """The steps' figures of a run with the given settings, over as many processes as its layout needs."""
    config = {**SETTINGS, **more}
    count = 1
    for name, ways in config.get("parallel", {}).items():
        count *= ways if name in ("replicate", "shard", "context", "tensor", "pipeline") else 1
    spec = {"out": str(out), "checkpoint": str(checkpoint), "tokens": str(tokens), "config": config,
            "stream": stream or STREAM}
    if stop is not None:
        spec["stop"] = stop
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(spec)], stderr=subprocess.PIPE, env={
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank in range(count)]
    errors = [worker.communicate(timeout=240)[1].decode() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)[-3000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line]


def assert_close(found: list[dict], expected: list[dict], bound: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < bound
        assert abs(ours["grad_norm"] / theirs["grad_norm"] - 1) < 10 * bound
        assert ours["tokens"] == theirs["tokens"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_tokens: Path) -> list[dict]:
    found = run(tmp_path_factory.mktemp("alone") / "out", tiny_checkpoint, tiny_tokens)
    assert len(found) >= 18
    return found


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [
    {"shard": 2}, {"shard": 2, "reshard_after_forward": False}, {"replicate": 2}, {"tensor": 2}, {"shard": 2, "tensor": 2},
], ids=str)
def test_layout_equals_one_process(alone: list[dict], tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                   parallel: dict) -> None:
    found = run(tmp_path / "out", tiny_checkpoint, tiny_tokens, parallel=parallel)
    assert_close(found, alone, 1e-5)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0
    assert not (tmp_path / "out" / "state").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [({}, {"shard": 2}), ({"shard": 2}, {"tensor": 2}), ({"tensor": 2}, {})], ids=str)
def test_state_is_read_by_another_layout(alone: list[dict], tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                         first: dict, second: dict) -> None:
    run(tmp_path / "out", tiny_checkpoint, tiny_tokens, parallel=first, stop=7)
    assert list((tmp_path / "out" / "state").glob("step-00000007/*.safetensors"))
    assert_close(run(tmp_path / "out", tiny_checkpoint, tiny_tokens, parallel=second), alone, 1e-5)


@pytest.mark.slow
def test_lost_worker_restarts_all_and_loses_nothing(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """SIGKILL of one of two workers: our launcher starts both again from the last state, and the losses are the same."""
    import threading
    import time

    import psutil

    from penjing.contract import Job
    from penjing.stages import train

    config = train.Config(tokens=3000, lr=1e-2, precision="fp32", sequence_length=64, batch_rows=4, packing="best-fit",
                          save_every=2, parallel={"shard": 2})
    inputs = {"checkpoint": tiny_checkpoint, "tokens": [tiny_tokens]}
    killed = []

    def kill_one() -> None:
        while not list((tmp_path / "hit" / "state").glob("step-*[0-9]")):
            time.sleep(0.01)
        workers = psutil.Process().children()
        killed.append(workers[-1].pid)
        workers[-1].kill()

    for name in ("whole", "hit"):
        (tmp_path / name).mkdir()
        if name == "hit":
            threading.Thread(target=kill_one, daemon=True).start()
        train.run(config, inputs, tmp_path / name, Job(metrics=tmp_path / name / "metrics.jsonl"))
    assert killed
    for file in ("train.json", "model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "hit" / file).read_bytes()


@pytest.mark.slow
def test_fault_of_a_worker_ends_all_with_its_sentence(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from penjing.contract import Job
    from penjing.errors import ConfigError
    from penjing.stages import train

    config = train.Config(tokens=1000, sequence_length=64, batch_rows=4, trainable="re:nothing", parallel={"shard": 2})
    with pytest.raises(ConfigError, match="no parameter fits trainable"):
        train.run(config, {"checkpoint": tiny_checkpoint, "tokens": [tiny_tokens]}, tmp_path, Job())


@pytest.mark.parametrize("how", [{"recompute": "full"}, {"recompute": "selective"}])
def test_recomputing_activations_changes_nothing(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path, how: dict) -> None:
    from penjing.contract import Job
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.config import TrainConfig
    from penjing.train.loop import train

    stream = build_stream(StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit"), tiny_tokens)
    losses = []
    for name, more in (("plain", {}), ("again", how)):
        figures = train(TrainConfig(**{**SETTINGS, "tokens": 1000, **more}), checkpoint=tiny_checkpoint, stream=stream,
                        out=tmp_path / name, job=Job())
        losses.append([point["loss"] for point in figures["curve"]])
    assert losses[0] == losses[1]


def test_layout_that_does_not_fit_the_processes_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from penjing.errors import ConfigError
    from penjing.train.config import ParallelConfig
    from penjing.train.distributed import start

    with pytest.raises(ConfigError, match=r"the layout does not fit the number of processes; found 4 = .*nproc-per-node 4"):
        start(ParallelConfig(shard=2, tensor=2))
