"""Bad steps: spikes are dropped or rolled back, non-numbers stop with the batch kept, a full disk costs nothing saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError, GateError, Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.train import state
from penjing.train.config import GuardConfig, TrainConfig
from penjing.train.guard import Guard
from penjing.train.loop import train

STREAM = StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit")


class Spiked:
    """A real stream in which the labels of some steps are drawn at random."""

    def __init__(self, tokens: Path, bad: set[int], weight: float = 1.0) -> None:
        self._stream, self._bad, self._weight = build_stream(STREAM, tokens), bad, weight
        self.sources, self.tokens_per_step = self._stream.sources, self._stream.tokens_per_step

    def batch(self, step: int, **more: Any) -> Any:
        batch = self._stream.batch(step, **more)
        if step not in self._bad:
            return batch
        targets = np.where(batch.targets_BS == -100, -100, np.random.default_rng(step).integers(3, 97, batch.targets_BS.shape))
        return replace(batch, targets_BS=targets, weights_BS=np.where(targets == -100, 0, np.float32(self._weight)))


def run(out: Path, checkpoint: Path, stream: Any, **more: Any) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    job = more.pop("job", Job(metrics=out / "metrics.jsonl"))
    config = TrainConfig(**{"tokens": 9000, "lr": 1e-2, "precision": "fp32", "save_every": 5,
                            "guard": {"window": 16, "min_ratio": 1.2}, **more})
    return train(config, checkpoint=checkpoint, stream=stream, out=out, job=job)


def events(out: Path) -> list[str]:
    return [line["event"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "event" in line]


def test_guard_sees_a_leap_and_ignores_noise() -> None:
    guard = Guard(GuardConfig(window=16))
    rng = np.random.default_rng(0)
    assert {guard.judge(2 + 0.1 * rng.standard_normal(), 1.0) for _ in range(64)} == {"fine"}
    assert guard.judge(4.0, 1.0) == "spike" and guard.judge(2.0, 5.0) == "spike"
    assert guard.judge(float("nan"), 1.0) == "broken" and guard.judge(2.0, float("inf")) == "broken"
    twin = Guard(GuardConfig(window=16))
    twin.restore(json.loads(json.dumps(guard.state())))
    assert twin.judge(4.0, 1.0) == "spike"


def test_spike_is_skipped_and_named(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    figures = run(tmp_path, tiny_checkpoint, Spiked(tiny_tokens, {25}))
    assert figures["skipped_steps"] == 1
    assert json.loads((tmp_path / "train.json").read_text())["skipped_steps"] == [25]
    assert "spike" in events(tmp_path)


def test_spike_is_rolled_back_and_its_data_passed_over(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    figures = run(tmp_path, tiny_checkpoint, Spiked(tiny_tokens, {26, 27}),
                  guard={"window": 16, "min_ratio": 1.2, "on_spike": "rollback"})
    assert figures["skipped_steps"] == 2 and "rolled back" in events(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "grad_norm" in line and "loss" in line and "event" not in line]
    assert steps.count(26) == 2  # step 26 was done again, on later data
    assert figures["final_loss"] < 2.5


def test_too_many_spikes_stop_the_run(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    with pytest.raises(GateError, match="too many spikes"):
        run(tmp_path, tiny_checkpoint, Spiked(tiny_tokens, set(range(25, 60))),
            guard={"window": 16, "min_ratio": 1.2, "max_skipped": 3})


def test_non_number_stops_and_keeps_the_batch(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from safetensors.numpy import load_file

    with pytest.raises(GateError, match="not a finite number.*the batch is kept in"):
        run(tmp_path, tiny_checkpoint, Spiked(tiny_tokens, {7}, weight=float("inf")))
    kept = load_file(tmp_path / "state" / "bad-step-00000007" / "batch.safetensors")
    assert kept["tokens_BS"].shape == (4, 64)
    assert (tmp_path / "state" / "step-00000005" / "state.json").is_file()


def test_full_disk_leaves_the_last_good_state(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                              monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = state.write_whole

    def filling(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        real(path, tensors)
        if "00000006" in path.name:
            (path / "tensors.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.Saver.__init__, "__kwdefaults__", {"write": filling})
    stops = iter(range(1, 1000))
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_checkpoint, build_stream(STREAM, tiny_tokens), save_every=3,
            job=Job(stop=lambda: next(stops) >= 7))
    assert "state of step 6 could not be saved (the disk is full); older states are kept" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000003", "step-00000007"]


def test_out_of_memory_says_what_to_change(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("penjing.train.model.chunked_loss", full)
    with pytest.raises(ConfigError, match="step 0: out of memory; found 4 rows of 64 tokens in one forward pass; set micro_rows: 2, "
                       "or else recompute: full, or else parallel.shard: 2 on twice the processes"):
        run(tmp_path / "rows", tiny_checkpoint, build_stream(STREAM, tiny_tokens))
    with pytest.raises(ConfigError, match="found 1 row of 64 tokens in one forward pass; set loss_chunk_tokens: 512, or else "
                       "parallel.shard: 2 on twice the processes, or else parallel.context: 2 on twice the processes"):
        run(tmp_path / "row", tiny_checkpoint, build_stream(STREAM, tiny_tokens), micro_rows=1, recompute="full")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose FFN activations are the given times louder than usual."""

    def make(times: float) -> Path:
        from transformers import AutoModelForCausalLM

        from tests.train.conftest import make_checkpoint

        path = make_checkpoint(tmp_path_factory.mktemp("loud"))
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.gate_proj.weight.mul_(times)
                layer.mlp.up_proj.weight.mul_(times)
        model.save_pretrained(path)
        return path

    return make


@pytest.mark.slow
def test_fp16_activations_overflow_and_the_fault_names_bf16(loud: Any, tmp_path: Path, tiny_tokens: Path) -> None:
    """As Ziya2 reports, fp16 ends at 65,504; bf16 has fp32's range."""
    checkpoint = loud(1e5)
    with pytest.raises(GateError, match="or use bf16"):
        run(tmp_path / "fp16", checkpoint, build_stream(STREAM, tiny_tokens), precision="fp16", tokens=300, lr=1e-4)
    run(tmp_path / "bf16", checkpoint, build_stream(STREAM, tiny_tokens), precision="bf16", tokens=300, lr=1e-6)
