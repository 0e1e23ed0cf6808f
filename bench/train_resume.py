"""What saving costs while training goes on, and how long a stopped run takes to its next step. One command:

    python bench/train_resume.py --json        [--model 20m|95m] [--steps 12] [--save-every 5]

Prints the share of the time that training waited for saving (asynchronous, into files that are flushed to the disk), seconds per
state and its bytes, then for a new process that goes on from the state: seconds and CPU seconds from its start to the end of its
first step, in parts (imports, model, reading the state, the step itself), and the time a plain read of the same file takes, which
is what is subtracted. Peer in the same run: `torch.save` of the same state between steps, as the Hugging Face Trainer saves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {"2m": (128, 344, 4, 4, 2048), "20m": (384, 1024, 8, 6, 8192), "95m": (768, 2048, 12, 12, 8192)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=SHAPES, default="20m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        parameters = prepare(root, given)
        first = in_child(root, given)
        again = in_child(root, given)
        file = max((root / "out" / "state").glob("step-*/tensors.safetensors"))
        peer = plain_save(root, file)
        report = {"benchmark": "train_resume", "model": given.model, "parameters": parameters, "state_bytes": file.stat().st_size,
                  "saving": first["saving"], "peer_torch_save": peer,
                  "stall_share_of_peer": first["saving"]["stalled_s_per_state"] / peer["seconds"],
                  "resume": {**again["resume"], "plain_read_s": peer["read_s"],
                             "first_step_less_read_s": again["resume"]["first_step_s"] - peer["read_s"]},
                  "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"}
    print(json.dumps(report, indent=None if given.json else 2))


def prepare(root: Path, given: argparse.Namespace) -> int:
    """A random checkpoint and random tokens; gives the number of parameters."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from penjing.objectives.tokens import write_tokens

    hidden, ffn, layers, heads, vocab = SHAPES[given.model]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=given.length, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(root / "model")
    rng = np.random.default_rng(0)
    needed = given.rows * given.length * (2 * given.steps + 8)
    documents = [(np.append(rng.integers(3, vocab, int(rng.integers(50, 400))), 2),) for _ in range(needed // 225 + 10)]
    write_tokens(root / "tokens", {"random": documents}, vocab_size=vocab, eos_id=2)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def in_child(root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """A run in a process of its own, which stops after `steps` steps with its state saved."""
    command = [sys.executable, __file__, "--child", str(root), "--steps", str(given.steps), "--save-every", str(given.save_every),
               "--rows", str(given.rows), "--length", str(given.length)]
    started = time.time()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PENJING_STARTED": str(started)}, capture_output=True,
                          text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(given: argparse.Namespace) -> None:
    """Go on from the state in the folder, if there is one, for `steps` steps; prints figures of saving and of the start."""
    born = float(os.environ["PENJING_STARTED"])
    marks = {"born": 0.0}

    def mark(name: str) -> None:
        marks[name] = time.time() - born

    import torch

    from penjing.contract import Job
    from penjing.errors import Interrupted
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.config import TrainConfig
    from penjing.train.loop import Run

    torch.set_num_threads(1)
    mark("imports_s")
    root = Path(given.child)
    (root / "out").mkdir(exist_ok=True)
    stream = build_stream(StreamConfig(sequence_length=given.length, batch_rows=given.rows, packing="best-fit"), root / "tokens")
    calls = 0

    def stop() -> bool:  # looked at once at the end of every step's gradients
        nonlocal calls
        calls += 1
        return calls >= given.steps

    config = TrainConfig(tokens=10**12, lr=1e-4, warmup_tokens=0, save_every=given.save_every)
    run = Run(config, checkpoint=root / "model", stream=stream, out=root / "out", teacher=None, held_out=None, validation=None,
              identity={}, job=Job(metrics=root / "out" / "metrics.jsonl", stop=stop))
    mark("model_s")
    run.resume()
    mark("state_s")
    before = run.step
    began, cpu = time.time(), time.process_time()
    with contextlib.suppress(Interrupted):
        run.go()
    seconds, cpu = time.time() - began, time.process_time() - cpu
    lines = [json.loads(line) for line in (root / "out" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line.get("step") == before + 1 and "grad_norm" in line)
    states = (given.steps - 1) // given.save_every  # the one at the stop is waited for and does not count
    stalled = run.saver.stalled_s - run.saver.last_s
    steps_s = sum(line["seconds"] for line in lines if "grad_norm" in line and line["step"] > before)
    print(json.dumps({
        "saving": {"states": states, "stalled_s_per_state": stalled / max(1, states), "stall_share": stalled / (seconds - run.saver.last_s),
                   "seconds_per_step": steps_s / given.steps, "cpu_s": cpu},
        "resume": {"from_step": before, **{name: round(value, 3) for name, value in marks.items() if name != "born"},
                   "first_step_s": first["time_s"] - born, "first_step_alone_s": first["seconds"]}}))


def plain_save(root: Path, state: Path) -> dict[str, float]:
    """Seconds to copy the state to a file the way the peer does, training waiting; and to read it back once."""
    import torch
    from safetensors.torch import load_file

    began = time.time()
    tensors = load_file(state)
    total = sum(float(tensor.flatten()[:: 1024].sum()) for tensor in tensors.values())
    read = time.time() - began
    began = time.time()
    with (root / "peer.pt").open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    return {"seconds": time.time() - began, "read_s": read, "checked": total}


if __name__ == "__main__":
    main()
