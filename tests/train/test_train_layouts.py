"""Every layout over processes gives the losses of one process, and reads every other layout's state."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from penjing.train.distributed import die_with_parent
die_with_parent()
from tests.train.test_train_layouts import carry_out
for one in json.loads(sys.argv[1]):
    carry_out(one)
"""
STREAM = {"sequence_length": 64, "batch_rows": 4, "packing": "best-fit"}
SETTINGS = {"tokens": 4400, "lr": 1e-2, "precision": "fp32", "micro_rows": 2, "save_every": 100}
DIMENSIONS = ("replicate", "shard", "context", "tensor", "pipeline")


def spec(out: Path, checkpoint: Path, tokens: Path, /, *, stop: int | None = None, stream: dict | None = None,
         evaluate: bool = False, **config: object) -> dict:
    """A run for PROGRAM; several in one go save the time that processes need to start."""
    return {"out": str(out), "checkpoint": str(checkpoint), "tokens": str(tokens), "stop": stop, "stream": stream or STREAM,
            "evaluate": evaluate, "config": {**SETTINGS, **config}}


def carry_out(one: dict) -> None:
    """The run of a spec in this process, or this process's share of it."""
    from penjing.contract import Job
    from penjing.errors import Interrupted
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.config import TrainConfig
    from penjing.train.held_out import open_held_out
    from penjing.train.loop import train

    out, tokens = Path(one["out"]), Path(one["tokens"])
    out.mkdir(parents=True, exist_ok=True)
    calls = iter(range(1, 10**6))
    held_out = open_held_out(tokens, sequence_length=64, vocab_size=97) if one["evaluate"] else None
    with contextlib.suppress(Interrupted):
        train(TrainConfig(**one["config"]), checkpoint=Path(one["checkpoint"]), out=out, held_out=held_out,
              stream=build_stream(StreamConfig(**one["stream"]), tokens),
              job=Job(metrics=out / "metrics.jsonl", stop=lambda: next(calls) >= (one["stop"] or 10**6)))


def launch(*specs: dict) -> None:
    """Carry out runs of equally many processes one after another, in the same processes."""
    counts = set()
    for one in specs:
        count = 1
        for name, ways in one["config"].get("parallel", {}).items():
            count *= ways if name in DIMENSIONS else 1
        counts.add(count)
    (count,) = counts
    if count == 1:
        for one in specs:
            carry_out(one)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).parents[2])
    workers = [subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(specs), root], stderr=subprocess.PIPE, env={
        **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank in range(count)]
    try:
        errors = [worker.communicate(timeout=400)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)[-3000:]


def steps(out: Path) -> list[dict]:
    """The steps' figures of a run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line]


def run(out: Path, checkpoint: Path, tokens: Path, /, **more: object) -> list[dict]:
    """The steps' figures of one run with the given settings, over as many processes as its layout needs."""
    launch(spec(out, checkpoint, tokens, **more))  # type: ignore[arg-type]
    return steps(out)


def assert_close(found: list[dict], expected: list[dict], bound: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < bound
        assert abs(ours["grad_norm"] / theirs["grad_norm"] - 1) < 10 * bound
        assert ours["tokens"] == theirs["tokens"]


def assert_same_weights(found: Path, expected: Path) -> None:
    from safetensors.torch import load_file

    ours, theirs = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        assert float((ours[name] - tensor).abs().max()) < 1e-3  # Adam makes rounding larger where gradients are tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.train.conftest import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("four"), layers=4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tiny_tokens: Path) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    assert len(run(out, checkpoint, tiny_tokens, evaluate=True)) >= 18
    return out


def several(where: Path, checkpoint: Path, tokens: Path, layouts: list[dict], /, **more: object) -> dict[str, Path]:
    outs = {str(parallel): where / str(number) for number, parallel in enumerate(layouts)}
    launch(*(spec(outs[str(parallel)], checkpoint, tokens, parallel=parallel, evaluate=True, **more)  # type: ignore[arg-type]
             for parallel in layouts))
    return outs


PAIRS = [{"pipeline": 2}, {"context": 2}]
MORE_PAIRS = [{"pipeline": 2, "pipeline_chunks": 2}, {"shard": 2}, {"shard": 2, "reshard_after_forward": False}, {"replicate": 2},
              {"tensor": 2}]
FOURS = [{"pipeline": 2, "shard": 2}, {"shard": 2, "tensor": 2}, {"pipeline": 2, "context": 2}]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tiny_tokens: Path) -> dict[str, Path]:
    return several(tmp_path_factory.mktemp("pairs"), checkpoint, tiny_tokens, PAIRS)


@pytest.fixture(scope="module")
def more_pairs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tiny_tokens: Path) -> dict[str, Path]:
    return several(tmp_path_factory.mktemp("more"), checkpoint, tiny_tokens, MORE_PAIRS)


@pytest.fixture(scope="module")
def fours(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, tiny_tokens: Path) -> dict[str, Path]:
    return several(tmp_path_factory.mktemp("fours"), checkpoint, tiny_tokens, FOURS, micro_rows=1)


def assert_equals_one_process(out: Path, alone: Path) -> None:
    assert_close(steps(out), steps(alone), 1e-5)
    assert_same_weights(out, alone)
    ours, theirs = (json.loads((place / "train.json").read_text()) for place in (out, alone))
    assert ours["parameters"] == theirs["parameters"] and ours["trained_parameters"] == theirs["trained_parameters"]
    for name, value in theirs["held_out"][-1]["bits_per_byte"].items():
        assert abs(ours["held_out"][-1]["bits_per_byte"][name] - value) < 1e-3
    assert not (out / "state").exists()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == ours["parameters"]


@pytest.mark.parametrize("parallel", PAIRS, ids=str)
def test_layers_or_rows_over_two_processes_equal_one(alone: Path, pairs: dict[str, Path], parallel: dict) -> None:
    assert_equals_one_process(pairs[str(parallel)], alone)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", MORE_PAIRS, ids=str)
def test_two_processes_equal_one(alone: Path, more_pairs: dict[str, Path], parallel: dict) -> None:
    assert_equals_one_process(more_pairs[str(parallel)], alone)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", FOURS, ids=str)
def test_four_processes_equal_one(alone: Path, fours: dict[str, Path], parallel: dict) -> None:
    assert_equals_one_process(fours[str(parallel)], alone)


@pytest.mark.slow
def test_a_run_goes_on_under_one_layout_after_another(alone: Path, tmp_path: Path, checkpoint: Path, tiny_tokens: Path) -> None:
    """One process, then sharded, pipelined, interleaved, rows cut, tensors cut, and one process again: one curve."""
    out = tmp_path / "out"
    launch(spec(out, checkpoint, tiny_tokens, stop=3))
    launch(*(spec(out, checkpoint, tiny_tokens, stop=3, parallel=parallel) for parallel in (
        {"shard": 2}, {"pipeline": 2}, {"pipeline": 2, "pipeline_chunks": 2}, {"context": 2}, {"tensor": 2})))
    assert len(steps(out)) == 18 and list((out / "state").glob("step-00000018/*.safetensors"))
    launch(spec(out, checkpoint, tiny_tokens, evaluate=True))
    assert_equals_one_process(out, alone)


@pytest.mark.slow
def test_new_rows_alone_are_trained_over_processes(tmp_path: Path, checkpoint: Path, tiny_tokens: Path) -> None:
    from safetensors.torch import load_file

    more = {"trainable": "new-rows", "new_rows_from": 60, "tokens": 1500}
    launch(spec(tmp_path / "alone", checkpoint, tiny_tokens, **more))
    outs = [tmp_path / name for name in ("shard", "pipeline")]
    launch(*(spec(out, checkpoint, tiny_tokens, parallel={out.name: 2}, **more) for out in outs))
    before = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    for out in outs:
        assert_close(steps(out), steps(tmp_path / "alone"), 1e-5)
        after = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
        assert bool((after[:60] == before[:60]).all()) and bool((after[60:] != before[60:]).any(1).all())


@pytest.mark.slow
def test_matrices_are_cut_as_each_architecture_needs(tmp_path: Path, tiny_tokens: Path) -> None:
    """Tensors: OpenBA's gate and up and GPT-2's q, k and v part by part, Qwen3's norms of single heads hear of all heads; one
    process goes on from the state of two. Pipelines: OpenBA's encoder before its decoder, GPT-2's positions at the first end."""
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

    from tests.train import test_train_seq2seq as openba

    pairs = openba.make_tokens(tmp_path / "pairs")
    openba.make("openba", tmp_path / "openba")
    Qwen3ForCausalLM(Qwen3Config(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                 num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
                                 eos_token_id=2, tie_word_embeddings=False)).save_pretrained(tmp_path / "qwen3")
    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0, embd_pdrop=0,
                               attn_pdrop=0, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path / "gpt2")

    def a_run(model: str, name: str, **more: object) -> dict:
        settings: dict = {"tokens": 1500, **more}
        if model == "openba":
            settings |= {"stream": openba.stream_config().model_dump(mode="json"), "tokens": 2400}
        return spec(tmp_path / f"{model}-{name}", tmp_path / model, pairs if model == "openba" else tiny_tokens, **settings)

    models, tensor = ("openba", "gpt2", "qwen3"), {"tensor": 2}
    launch(*(a_run(model, "two", parallel=tensor) for model in models),
           *(a_run(model, "pipeline", parallel={"pipeline": 2}) for model in models),
           *(a_run(model, "mixed", parallel=tensor, stop=2) for model in models))
    launch(*(a_run(model, name) for model in models for name in ("alone", "mixed")))
    for model in models:
        for name in ("two", "mixed", "pipeline"):
            assert len(steps(tmp_path / f"{model}-{name}")) > 3
            assert_close(steps(tmp_path / f"{model}-{name}"), steps(tmp_path / f"{model}-alone"), 1e-5)
            assert_same_weights(tmp_path / f"{model}-{name}", tmp_path / f"{model}-alone")


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


def test_layouts_that_cannot_be_are_refused_in_words(tiny_tokens: Path) -> None:
    from penjing.errors import ConfigError
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.feed import Place, prepare_step

    stream = build_stream(StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit"), tiny_tokens)
    with pytest.raises(ConfigError, match="batch_rows: the rows of a batch do not divide among the processes; found 4"):
        prepare_step(stream, 0, micro_rows=None, place=Place(0, 3))
    with pytest.raises(ConfigError, match="micro_rows: the micro-batches do not suit the pipeline; found 4 rows a process in parts of "
                       "4; expected at least 2 equal micro-batches for parallel.pipeline 2; set micro_rows to one of 2, 1"):
        prepare_step(stream, 0, micro_rows=4, place=Place(pipeline=2))
    with pytest.raises(ConfigError, match="batch_rows: the micro-batches do not suit the pipeline.*set batch_rows to a multiple of 16"):
        prepare_step(stream, 0, micro_rows=None, place=Place(pipeline=8))
    with pytest.raises(ConfigError, match="parallel.context: rows cannot be cut into equal parts; found 3; expected a divisor of half of "
                       "sequence_length 64"):
        prepare_step(stream, 0, micro_rows=None, place=Place(contexts=3))
    assert len(prepare_step(stream, 0, micro_rows=None, place=Place(pipeline=2)).parts) == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_come_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    from datetime import timedelta

    from penjing.errors import ConfigError
    from penjing.train.config import ParallelConfig
    from penjing.train.distributed import start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"WORLD_SIZE": 2, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=f"rank {rank}: the other processes did not come; found nobody at 127.0.0.1:{port} for 1 s"):
        start(ParallelConfig(shard=2), wait=timedelta(seconds=1))


def test_check_prices_a_layout_and_refuses_one_that_cannot_be(checkpoint: Path) -> None:
    from penjing.contract import Estimate
    from penjing.errors import ConfigError
    from penjing.stages import train

    model = json.loads((checkpoint / "config.json").read_text())

    def price(**more: object) -> Estimate:
        config = train.Config(tokens=1000, sequence_length=64, batch_rows=8, **more)
        return train.price(config, {"checkpoint": Estimate(model=model, parameters=1e5), "tokens": [Estimate()]})

    whole, cut = price(), price(parallel={"shard": 2, "pipeline": 2})
    assert cut.memory_bytes is not None and whole.memory_bytes is not None and cut.flops == whole.flops
    assert 4e8 < cut.memory_bytes < whole.memory_bytes
    with pytest.raises(ConfigError, match="micro_rows: the micro-batches do not suit the pipeline; found 8 rows a process in parts of 3"):
        price(parallel={"pipeline": 2}, micro_rows=3)
    with pytest.raises(ConfigError, match="parallel.tensor: tensor parallelism does not divide the model; found 4; expected a divisor of "
                       "2 kv_heads"):
        price(parallel={"tensor": 4})


def test_architectures_are_listed_where_they_are_cut() -> None:
    from penjing.train import layout, pipeline, tensor

    assert set(pipeline.ENDS) == layout.PIPELINED and set(tensor.HEAD_COUNTS) == layout.TENSOR_CUT


def test_models_that_cannot_be_a_pipeline_are_refused_in_words(checkpoint: Path, tmp_path: Path) -> None:
    import torch

    from penjing.errors import ConfigError
    from penjing.train.config import ParallelConfig
    from penjing.train.distributed import World
    from penjing.train.model import load
    from penjing.train.pipeline import split, stretch
    from tests.train import test_train_seq2seq as openba

    def world(**ways: int) -> World:
        parallel = ParallelConfig(**ways)
        return World(0, parallel.world, torch.device("cpu"), parallel)

    with pytest.raises(ConfigError, match="parallel.pipeline: a pipeline cannot be made of t5; expected one of codegen, glm"):
        split(load(openba.make("t5", tmp_path)), world(pipeline=2), trained=set())
    with pytest.raises(ConfigError, match="more pipeline stages than layers; found 8 = pipeline 4 x pipeline_chunks 2; expected at most 4"):
        split(load(checkpoint), world(pipeline=4, pipeline_chunks=2), trained=set())
    model = load(checkpoint)
    with pytest.raises(ConfigError, match="trainable: process 0 of the pipeline would have nothing to train"):
        split(model, world(pipeline=2), trained={"model.layers.3.mlp.up_proj.weight"})
    stages, shared = split(model, world(pipeline=2), trained={name for name, _ in model.named_parameters()})
    assert shared == {"model.embed_tokens.weight"}
    names = [name for name, _ in stages[0].named_parameters()]
    assert {name.split(".")[2] for name in names if "layers" in name} == {"0", "1"} and names[0] == "model.embed_tokens.weight"
    assert stretch([1, 1, 1, 1], 2, 2) == [range(3), range(3, 4)] and stretch([5, 1, 1, 1], 0, 2) == [range(1), range(1, 4)]
