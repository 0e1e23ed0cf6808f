"""What goes wrong around a run ends in one clear sentence, or does not matter: disks, processes, other inputs, 16 bits."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from penjing.contract import Job
from penjing.errors import InputError, Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.stages import train as stage
from penjing.train.config import TrainConfig
from penjing.train.loop import train

STREAM = {"sequence_length": 64, "batch_rows": 4, "packing": "best-fit"}
SETTINGS = {"tokens": 2000, "lr": 1e-2, "precision": "fp32", "save_every": 3}


def run(out: Path, checkpoint: Path, tokens: Path, /, *, stop: int = 10**6, stream: dict | None = None, **more: object) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    calls = iter(range(1, 10**7))
    made = build_stream(StreamConfig(**(stream or STREAM)), tokens)
    return train(TrainConfig(**{**SETTINGS, **more}), checkpoint=checkpoint, stream=made, out=out,
                 job=Job(metrics=out / "metrics.jsonl", stop=lambda: next(calls) >= stop))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def workers(specs: list[dict]) -> list[subprocess.Popen]:
    """As torchrun starts them: one worker per spec, each with its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [subprocess.Popen([sys.executable, "-m", "penjing.train.launch", json.dumps(spec)], stderr=subprocess.PIPE, text=True, env={
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(specs)),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank, spec in enumerate(specs)]


def spec(out: Path, checkpoint: Path, tokens: Path, /, **config: object) -> dict:
    return {"config": {**SETTINGS, **STREAM, "parallel": {"shard": 2}, **config}, "out": str(out), "metrics": None,
            "inputs": {"checkpoint": str(checkpoint), "tokens": [str(tokens)]}}


@pytest.mark.slow
@pytest.mark.parametrize("differ", ["settings", "layout", "inputs"])
def test_processes_that_disagree_all_end_and_one_says_why(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path, differ: str) -> None:
    from tests.train.conftest import make_tokens

    ours = theirs = spec(tmp_path / "out", tiny_checkpoint, tiny_tokens)
    what = "settings or inputs"
    if differ == "settings":
        theirs = spec(tmp_path / "out", tiny_checkpoint, tiny_tokens, lr=2e-2)
    elif differ == "layout":
        theirs, what = spec(tmp_path / "out", tiny_checkpoint, tiny_tokens, parallel={"tensor": 2}), "parallel"
    else:
        theirs = spec(tmp_path / "out", tiny_checkpoint, make_tokens(tmp_path / "tokens", documents=201))
    started = workers([ours, theirs])
    said = [worker.communicate(timeout=120)[1] for worker in started]
    assert [worker.returncode for worker in started] == [2, 2]
    assert f"rank 1: the processes do not agree on {what}" in said[0]
    assert "agree" not in said[1] and "Traceback" not in said[0] + said[1]


@pytest.mark.slow
def test_a_process_that_fails_alone_is_heard(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """The main process waits for the other, which has no tokens: the launcher says so and ends both."""
    started = workers([spec(tmp_path / "out", tiny_checkpoint, tiny_tokens), spec(tmp_path / "out", tiny_checkpoint, tmp_path / "no")])
    said = started[1].communicate(timeout=120)[1]
    started[0].kill()
    started[0].communicate()
    assert started[1].returncode == 3 and said.startswith("process 1: ") and str(tmp_path / "no") in said
    assert (tmp_path / "out" / "state" / "fault.txt").read_text() + "\n" == said


@pytest.mark.slow
def test_workers_die_with_their_launcher(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    import psutil

    program = ("import json, sys; from pathlib import Path; from penjing.contract import Job; from penjing.stages import train\n"
               "spec = json.loads(sys.argv[1]); inputs = spec['inputs']\n"
               "train.run(train.Config(**spec['config']), {'checkpoint': Path(inputs['checkpoint']),\n"
               "          'tokens': [Path(path) for path in inputs['tokens']]}, Path(spec['out']), Job())")
    (tmp_path / "out").mkdir()
    given = spec(tmp_path / "out", tiny_checkpoint, tiny_tokens, tokens=10**7, save_every=1)
    launcher = subprocess.Popen([sys.executable, "-c", program, json.dumps(given)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out" / "state").glob("step-*[0-9]")) and time.monotonic() < deadline:
            assert launcher.poll() is None
            time.sleep(0.05)
        orphans = psutil.Process(launcher.pid).children()
        assert len(orphans) == 2
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    _, alive = psutil.wait_procs(orphans, timeout=30)
    assert not alive


@pytest.mark.slow
def test_ray_gives_the_same_bytes_after_losing_a_worker(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """Two workers on a Ray cluster of this machine, one of them killed: the checkpoint is our own launcher's."""
    pytest.importorskip("ray", reason="Ray is an optional extra and not installed")
    import psutil

    from penjing.train.launch_ray import launch_ray

    config = {**SETTINGS, **STREAM, "save_every": 2, "parallel": {"shard": 2}}
    (tmp_path / "own").mkdir()
    stage.run(stage.Config(**config), {"checkpoint": tiny_checkpoint, "tokens": [tiny_tokens]}, tmp_path / "own", Job())
    killed: list[int] = []

    def kill_one() -> None:
        while not list((tmp_path / "ray" / "state").glob("step-*[0-9]")):
            time.sleep(0.02)
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "penjing.train.launch" in line and str(tmp_path / "ray") in line[-1]:
                killed.append(process.pid)
                process.kill()
                return

    threading.Thread(target=kill_one, daemon=True).start()
    launch_ray({**spec(tmp_path / "ray", tiny_checkpoint, tiny_tokens), "config": config})
    assert killed
    for name in ("model.safetensors", "train.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()


def test_other_tokens_than_before_are_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """One byte of a token shard is another than when the state was saved."""
    tokens = Path(shutil.copytree(tiny_tokens, tmp_path / "tokens"))
    calls = iter(range(1, 10**6))
    config, inputs = stage.Config(**SETTINGS, **STREAM), {"checkpoint": tiny_checkpoint, "tokens": [tokens]}
    (tmp_path / "out").mkdir()
    with pytest.raises(Interrupted):
        stage.run(config, inputs, tmp_path / "out", Job(stop=lambda: next(calls) >= 3))
    shard = tokens / "en.bin"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="the saved state belongs to other settings or inputs.*the token shards changed"):
        stage.run(config, inputs, tmp_path / "out", Job())


def test_a_disk_that_is_really_full_keeps_the_last_good_state(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    """The system refuses to write from the fourth step on; the libraries report that in their own ways."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        while calls == 4 and not (tmp_path / "state" / "step-00000003" / "state.json").is_file():
            time.sleep(0.01)  # written beside training
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if calls < 4 else 50_000, hard))
        return calls >= 8

    try:
        with pytest.raises(Interrupted):
            train(TrainConfig(**SETTINGS), checkpoint=tiny_checkpoint, stream=build_stream(StreamConfig(**STREAM), tiny_tokens),
                  out=tmp_path, job=Job(stop=stop))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "state of step 6 could not be saved (the disk is full); older states are kept" in said
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000003"]
    run(tmp_path, tiny_checkpoint, tiny_tokens)
    whole = run(tmp_path / "whole", tiny_checkpoint, tiny_tokens)
    assert json.loads((tmp_path / "train.json").read_text())["final_loss"] == whole["final_loss"]


@pytest.mark.slow
def test_full_disk_under_several_processes(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """Only one of two processes cannot write: all go on, the older state stays, the half-written one goes."""
    program = ("import resource, sys, json; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
               "import tests.train.test_train_robust as t; import os\n"
               "from penjing.contract import Job; from penjing.errors import Interrupted\n"
               "calls = 0\n"
               "def stop():\n"
               "    global calls; calls += 1\n"
               "    if calls >= 4 and os.environ['RANK'] == '1': resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))\n"
               "    return calls >= 8\n"
               "out, checkpoint, tokens = map(Path, sys.argv[1:])\n"
               "try:\n"
               "    t.train(t.TrainConfig(**t.SETTINGS, parallel={'shard': 2}), checkpoint=checkpoint, out=out, job=Job(stop=stop),\n"
               "            stream=t.build_stream(t.StreamConfig(**t.STREAM), tokens))\n"
               "except Interrupted: pass\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(tiny_checkpoint), str(tiny_tokens)],
                                stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env={
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank in range(2)]
    said = [worker.communicate(timeout=120)[1] for worker in started]
    assert [worker.returncode for worker in started] == [0, 0], said
    assert said[0].count("could not be saved (the disk is full); older states are kept") == 2
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000003"]


@pytest.mark.parametrize(("kind", "scale", "lost"), [
    (torch.float16, 1.0, True), (torch.float16, 65536.0, False), (torch.bfloat16, 1.0, False)], ids=["fp16", "fp16 scaled", "bf16"])
def test_small_gradients_vanish_in_fp16_without_scaling(tiny_checkpoint: Path, tiny_tokens: Path, kind: torch.dtype, scale: float,
                                                        lost: bool) -> None:
    """As Ziya2 found. A label's share of a batch of four million is below what fp16 can hold; bf16 has fp32's range."""
    from penjing.train.feed import split
    from penjing.train.model import Objective, load

    batch = build_stream(StreamConfig(sequence_length=32, batch_rows=1, packing="best-fit"), tiny_tokens).batch(0)
    model = load(tiny_checkpoint)
    (Objective(model, TrainConfig(tokens=1), product=kind)(split(batch, slice(None))).total * (scale / 4e6)).backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "layers" in name and parameter.ndim == 2]
    share = sum(int((gradient == 0).sum()) for gradient in gradients) / sum(gradient.numel() for gradient in gradients)
    assert share > 0.5 if lost else share < 0.01


@pytest.mark.slow
def test_loss_scale_backs_off_until_gradients_fit(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """A scale that fp16 cannot hold is halved, the steps it spoilt update nothing, and the run learns like an unscaled one."""
    small = {"sequence_length": 32, "batch_rows": 1, "packing": "best-fit"}
    first = run(tmp_path / "fp16", tiny_checkpoint, tiny_tokens, stream=small, precision="fp16", loss_scale=2.0**24, tokens=500)
    events = [line for line in lines(tmp_path / "fp16") if line.get("event") == "overflow"]
    scales = [line["loss_scale"] for line in events]
    assert len(scales) >= 2 and scales == [2.0 ** (23 - number) for number in range(len(scales))]
    report = json.loads((tmp_path / "fp16" / "train.json").read_text())
    assert report["updates"] == report["steps"] - len(scales)
    same = run(tmp_path / "fp32", tiny_checkpoint, tiny_tokens, stream=small, tokens=500)
    assert abs(first["final_loss"] - same["final_loss"]) < 1.0


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a processor")
    for name, compiled in (("plain", False), ("compiled", True)):
        run(tmp_path / name, tiny_checkpoint, tiny_tokens, compile=compiled, tokens=1500)
    plain, compiled_steps = ([line for line in lines(tmp_path / name) if "grad_norm" in line] for name in ("plain", "compiled"))
    assert len(plain) == len(compiled_steps) > 5
    for ours, theirs in zip(compiled_steps, plain, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 1e-4


def test_offline_record_of_weights_and_biases(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is an optional extra and not installed")
    run(tmp_path, tiny_checkpoint, tiny_tokens, tokens=800, wandb=True)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_fp8_is_refused_where_it_cannot_be(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from penjing.errors import ConfigError

    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        pytest.skip("this machine multiplies in 8 bits")
    with pytest.raises(ConfigError, match="fp8: this device does not multiply in 8 bits"):
        run(tmp_path, tiny_checkpoint, tiny_tokens, fp8=True, precision="auto")


def test_a_worker_started_by_hand_makes_its_folders(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """As torchrun or srun start it, with a path that does not exist yet."""
    stage.work({"config": {**SETTINGS, **STREAM, "tokens": 800},
                "inputs": {"checkpoint": str(tiny_checkpoint), "tokens": [str(tiny_tokens)]},
                "out": str(tmp_path / "new" / "out"), "metrics": str(tmp_path / "logs" / "metrics.jsonl")})
    assert (tmp_path / "new" / "out" / "train.json").is_file() and (tmp_path / "logs" / "metrics.jsonl").is_file()
