"""A run that is killed anywhere ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penjing.contract import Job
from penjing.errors import InputError, Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.train.config import TrainConfig
from penjing.train.loop import train

STREAM = StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit")


def settings(**more: object) -> TrainConfig:
    return TrainConfig(**{"tokens": 4000, "lr": 1e-2, "save_every": 3, "precision": "fp32", **more})


def run(out: Path, checkpoint: Path, tokens: Path, /, *, config: TrainConfig | None = None, **job: object) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    return train(config or settings(), checkpoint=checkpoint, stream=build_stream(STREAM, tokens), out=out,
                 job=Job(metrics=out / "metrics.jsonl", **job), identity={"tokens": "a"})


def content(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.name not in ("metrics.jsonl", "state")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_tokens: Path) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out, tiny_checkpoint, tiny_tokens)
    return out


def stop_after(steps: int):  # type: ignore[no-untyped-def]
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


def test_it_learns_and_leaves_only_the_checkpoint(whole: Path) -> None:
    report = json.loads((whole / "train.json").read_text())
    assert report["curve"][-1]["loss"] < 0.7 * report["curve"][0]["loss"]
    assert set(content(whole)) == {"config.json", "generation_config.json", "model.safetensors", "train.json"}
    assert not (whole / "state").exists()


def test_stopped_and_resumed_run_is_bitwise_equal(whole: Path, tmp_path: Path, tiny_checkpoint: Path,
                                                  tiny_tokens: Path) -> None:
    for steps in (4, 5):
        with pytest.raises(Interrupted, match="the same command goes on"):
            run(tmp_path, tiny_checkpoint, tiny_tokens, stop=stop_after(steps))
    run(tmp_path, tiny_checkpoint, tiny_tokens)
    assert content(tmp_path) == content(whole)


def test_damaged_state_falls_back_to_the_one_before(whole: Path, tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_checkpoint, tiny_tokens, stop=stop_after(8))
    newest = sorted((tmp_path / "state").glob("step-*"))[-1]
    data = bytearray((newest / "tensors.safetensors").read_bytes())
    data[-100] ^= 1
    (newest / "tensors.safetensors").write_bytes(data)
    run(tmp_path, tiny_checkpoint, tiny_tokens)
    assert f"the saved state {newest.name} is damaged" in capsys.readouterr().err
    assert content(tmp_path) == content(whole)


def test_state_of_other_inputs_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_checkpoint, tiny_tokens, stop=stop_after(3))
    with pytest.raises(InputError, match="belongs to other settings or inputs"):
        run(tmp_path, tiny_checkpoint, tiny_tokens, config=settings(lr=2e-2))


@pytest.mark.slow
def test_killed_run_is_bitwise_equal(whole: Path, tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """SIGKILL at odd moments, some of them inside a write, until the run gets through."""
    program = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; torch.set_num_threads(1)\n"
               "import test_train_resume as t; from pathlib import Path\n"
               f"t.run(Path({str(tmp_path)!r}), Path({str(tiny_checkpoint)!r}), Path({str(tiny_tokens)!r}), "
               "config=t.settings(save_every=1))")
    metrics, kills = tmp_path / "metrics.jsonl", 0
    for wanted in (2, 4, 7, 9, None):
        process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if wanted is not None and any(json.loads(line).get("step", 0) >= wanted for line in lines if line.endswith("}")):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills >= 3
    assert content(tmp_path) == content(whole)


def test_tensorboard_gets_the_curves(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, tiny_checkpoint, tiny_tokens, config=settings(tokens=800), tensorboard=True)
    curves = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [line["loss"] for line in lines if "grad_norm" in line]
    assert [point.value for point in curves.Scalars("loss")] == pytest.approx(expected)
