"""Streaming, held to its promises in processes of their own: memory that does not grow, and kill -9 at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.models.checkpoint import Output, from_float, open_checkpoint, write_checkpoint
from penjing.models.family import of
from tests.prune.test_rotation import write_corpus

pytestmark = pytest.mark.slow

CUT = """
import sys
from pathlib import Path
from penjing.contract import Job
from penjing.stages import prune
config = prune.Config(layers=0.75, hidden=768, ffn=2048, heads=12, seed=5, max_shard_gigabytes=0.02)
prune.run(config, {"checkpoint": Path(sys.argv[1])}, Path(sys.argv[2]), Job())
assert "torch" not in sys.modules
text = Path("/proc/self/status").read_text()
print(int(text.partition("VmHWM:")[2].split()[0]) // 1024)
"""


MEASURE = """
import sys
from pathlib import Path
import numpy as np
import torch
from penjing.models.checkpoint import open_checkpoint
from penjing.prune import cut, depth, importance, plan, refit, rotation, width
torch.set_num_threads(1)
text = [{"input_ids": row} for row in np.random.default_rng(0).integers(0, 8000, (4, 64))]
with open_checkpoint(sys.argv[1]) as source:
    context = width.Context(source, samples=text, work=Path(sys.argv[2]) / "state")
    depth.greedy(depth.layered(sys.argv[1]), {"layers": 1}, text, shortlist=2)
    importance.calibrate(sys.argv[1], text, streamed=True).save(Path(sys.argv[2]) / "state" / "scores.safetensors")
    sizes = {"hidden": 768, "ffn": 2048}
    made = plan.build(source.config, keep=width.select(source.config, sizes, importance.output_energy(
        context, width.shrinking_units(source.config, sizes))))
    made = refit.refit(rotation.pca(made, context), context, streamed=True)
    cut.apply(made, source, Path(sys.argv[2]))
text = Path("/proc/self/status").read_text()
print(int(text.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def _source(path: Path, layers: int, *, sane: bool = False) -> Path:
    config = {
        "model_type": "llama",
        "vocab_size": 8000,
        "hidden_size": 1024,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 2816,
        "tie_word_embeddings": False,
    }
    block = np.random.default_rng(0).integers(0, 1 << 15, 1 << 22, dtype=np.uint16)
    if sane:  # numbers a model may have
        block = from_float(np.random.default_rng(0).normal(size=1 << 22) * 0.02, "BF16")
    outputs = []
    for name, tensor in of(config).tensors(config).items():
        bits = np.resize(block, tensor.shape)
        outputs.append(Output(name, "BF16", tensor.shape, lambda bits=bits: [bits]))
    write_checkpoint(path, config=config, tensors=outputs, max_shard_bytes=50_000_000)
    return path


def _run(source: Path, out: Path, script: str = CUT) -> int:
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small = _run(_source(tmp_path / "small", 2), tmp_path / "a")
    large = _run(_source(tmp_path / "large", 16), tmp_path / "b")
    assert large < small + 30 and large < 250


def test_memory_of_what_looks_at_data_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Calibration, greedy depth, rotation and refit of 2 and of 6 layers: 4 layers more are 200 MB in float32."""
    small = _run(_source(tmp_path / "small", 2, sane=True), tmp_path / "a", MEASURE)
    large = _run(_source(tmp_path / "large", 6, sane=True), tmp_path / "b", MEASURE)
    assert large < small + 80, f"{small} and {large} MB"


def test_a_killed_cut_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", 8)
    _run(source, tmp_path / "whole")
    out = tmp_path / "killed"
    for shards in (1, 3):
        out.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", CUT, str(source), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list(out.glob("model-*.safetensors"))) < shards and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "config.json").exists():
            assert len(list(out.glob("model-*.safetensors"))) >= shards
            with pytest.raises(InputError, match="config.json: file not found"):
                open_checkpoint(out)
    _run(source, out)
    assert hash_tree(out) == hash_tree(tmp_path / "whole")
    with open_checkpoint(out) as result:
        assert of(result.config).sizes(result.config)["layers"] == 6


REFIT = """
import sys
from pathlib import Path
from penjing.contract import Job
from penjing.stages import prune
settings = {"hidden": 48, "heads": 6, "ffn": 128, "importance": "output-energy", "refit": True, "measure": False,
            "calibration_samples": 16, "calibration_length": 64}
print("started", flush=True)
prune.run(prune.Config(**settings), {"checkpoint": Path(sys.argv[1]), "corpus": Path(sys.argv[2])}, Path(sys.argv[3]), Job())
"""


def test_a_killed_refit_leaves_nothing_and_comes_out_the_same(tmp_path: Path, shared: Path) -> None:
    model = shared / "models" / "stories260K"
    write_corpus(tmp_path / "corpus", (model / "tinystories_sample.txt").read_text(encoding="utf-8"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}

    def start(out: Path) -> subprocess.Popen[bytes]:
        out.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", REFIT, str(model), str(tmp_path / "corpus"), str(out)], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole = time.monotonic() - begun
    for share in (0.7, 0.95):
        process = start(tmp_path / "killed")
        time.sleep(share * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not [item for item in scratch.iterdir() if item.name.startswith("penjing")]
        if not (tmp_path / "killed" / "config.json").exists():
            with pytest.raises(InputError):
                open_checkpoint(tmp_path / "killed")
    assert start(tmp_path / "killed").wait() == 0
    assert hash_tree(tmp_path / "killed") == hash_tree(tmp_path / "whole")
