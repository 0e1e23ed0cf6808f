"""What only a GPU can show; everything here is skipped without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError, Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import write_tokens
from penjing.train.attention import attend, cross_isolation, self_isolation
from penjing.train.config import TrainConfig
from penjing.train.held_out import open_held_out
from penjing.train.loop import train
from penjing.train.loss import chunked_loss
from tests.train.conftest import make_checkpoint, make_tokens
from tests.train.test_train_attention import beginnings, reference, segments
from tests.train.test_train_seq2seq import SPECIAL, stream_config
from tests.train.test_train_seq2seq import make as make_pairs_model
from tests.train.test_train_seq2seq import make_tokens as make_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
STREAM = StreamConfig(sequence_length=64, batch_rows=4, packing="best-fit")


@pytest.fixture(scope="module", autouse=True)
def as_it_was() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


def seen_by(layout: Any, part: np.ndarray, window: int | None) -> torch.Tensor:
    """Which key each query sees, from the layout's definition, T by T."""
    place = part.reshape(-1).astype(np.int64) + np.repeat(np.arange(len(part)) * 1000, part.shape[1])
    seen = (place[:, None] == place[None]) & (part.reshape(-1) != 0)[None]
    if layout.causal:
        order = np.arange(part.size)
        earlier = order[:, None] >= order[None]
        kind = np.repeat(layout.kind_N.numpy(), np.diff(layout.cu_q_N1.numpy()))
        earlier = np.where((kind == 2)[:, None], earlier.T, earlier)
        if layout.prefix_T.numel():
            earlier |= layout.prefix_T.numpy()[None]
        if window:
            earlier &= order[:, None] - order[None] < window
        seen &= earlier
    return torch.from_numpy(seen)


@pytest.mark.parametrize("variant", ["causal", "both ways", "window", "prefix", "reversed"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", [(4, 4, 64), (4, 2, 128), (4, 2, 12)])
def test_attention_equals_its_definition(variant: str, kind: torch.dtype, heads: tuple[int, int, int]) -> None:
    part = segments(3, 700, 150, seed=1)
    prefix = beginnings(part) if variant == "prefix" else None
    backwards = np.array([True, False, True]) if variant == "reversed" else None
    window = 50 if variant == "window" else None
    layout = self_isolation(part, causal=variant != "both ways", prefix_BS=prefix, reversed_B=backwards)
    torch.manual_seed(0)
    shapes = [(part.size, heads[0], heads[2]), (part.size, heads[1], heads[2]), (part.size, heads[1], heads[2])]
    given = [torch.randn(shape, device=GPU, dtype=kind) for shape in shapes]
    pull = torch.randn(shapes[0], device=GPU, dtype=kind)
    pull *= torch.from_numpy(part.reshape(-1) != 0).to(GPU)[:, None, None]
    ours = [one.clone().requires_grad_() for one in given]
    exact = [one.double().requires_grad_() for one in given]
    out = attend(*ours, layout.each(lambda tensor: tensor.to(GPU)), scale=0.1, window=window)
    expected = reference(*exact, seen_by(layout, part, window).to(GPU), 0.1)
    out.backward(pull)
    expected.backward(pull.double())
    real = torch.from_numpy(part.reshape(-1) != 0).to(GPU)
    limit = 8e-3 if kind == torch.bfloat16 else 2e-3  # the wide kernel may multiply in tf32
    for a, b in [(out[real], expected[real]), *[(a.grad, b.grad) for a, b in zip(ours, exact, strict=True)]]:
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < limit


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_cross_attention_equals_its_definition(kind: torch.dtype) -> None:
    """Some documents have no input, some no output, and rows are full on one side only."""
    decoder, encoder = segments(3, 400, 90, seed=2), segments(3, 700, 140, seed=3)
    encoder[0][encoder[0] == 0] = encoder[0].max()
    decoder[1][decoder[1] == 0] = decoder[1].max()
    torch.full((1 << 24,), float("nan"), device=GPU)  # what kernels do not write is not a number
    layout = cross_isolation(decoder, encoder)
    torch.manual_seed(0)
    given = [torch.randn(part.size, 4, 64, device=GPU, dtype=kind) for part in (decoder, encoder, encoder)]
    ours, exact = [one.clone().requires_grad_() for one in given], [one.double().requires_grad_() for one in given]
    places = [torch.from_numpy(part.reshape(-1).astype(np.int64) + np.repeat(np.arange(3) * 1000, part.shape[1])).to(GPU)
              for part in (decoder, encoder)]
    real = torch.from_numpy(decoder.reshape(-1) != 0).to(GPU)
    out = attend(*ours, layout.each(lambda tensor: tensor.to(GPU)), scale=0.1)
    expected = reference(*exact, (places[0][:, None] == places[1][None]) & real[:, None], 0.1)
    pull = torch.randn_like(out) * real[:, None, None]
    out.backward(pull)
    expected.backward(pull.double())
    for a, b in [(out[real], expected[real]), *[(a.grad, b.grad) for a, b in zip(ours, exact, strict=True)]]:
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < (8e-3 if kind == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("vocab", [None, 50_000])
@pytest.mark.parametrize("direct", [False, True])
def test_compiled_loss_equals_plain_loss(vocab: int | None, direct: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(700, 64, device=GPU, requires_grad=True)
    table = torch.nn.Parameter(torch.randn(50_100, 64, device=GPU) / 8)
    targets = torch.randint(0, 50_000, (700,), device=GPU)
    targets[::5] = -100
    weights = torch.rand(700, device=GPU)
    exact_hidden, exact_table = hidden.detach().double().requires_grad_(), table.detach().double().requires_grad_()
    logits = (exact_hidden @ exact_table.T)[:, :vocab]
    kept = (targets != -100) * weights
    plain = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * kept).sum()
    plain = plain + 1e-3 * (logits.logsumexp(1).square() * kept).sum()
    (plain * 0.3).backward()
    made = chunked_loss(hidden, table, None, targets, weights, chunk=256, z_loss=1e-3, product=torch.bfloat16, vocab=vocab,
                        compiled=True, into_table=0.3 if direct else None)
    (made.total * 0.3).backward()
    assert float((made.total.double() - plain).detach().abs() / plain.detach()) < 1e-3
    for a, b in ((hidden.grad, exact_hidden.grad), (table.grad, exact_table.grad)):
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 1e-2


def settings(**more: Any) -> TrainConfig:
    return TrainConfig(**{"tokens": 4000, "lr": 1e-2, "save_every": 3, "precision": "fp32", "compile": False, **more})


def run(out: Path, checkpoint: Path, stream: Any, *, teacher: Path | None = None, stop: Any = lambda: False, held_out: Any = None,
        **config: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return train(settings(**config), checkpoint=checkpoint, stream=stream, out=out, teacher=teacher, held_out=held_out,
                 job=Job(metrics=out / "metrics.jsonl", stop=stop))


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "grad_norm" in line]


@pytest.fixture(scope="module")
def on_processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of the same settings on the processor, by name."""
    made: dict[str, list[float]] = {}

    def of(name: str, *args: Any, **config: Any) -> list[float]:
        if name not in made:
            out = tmp_path_factory.mktemp("processor")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.cuda, "is_available", lambda: False)
                run(out, *args, **config)
            made[name] = losses(out)
        return made[name]

    return of


@pytest.mark.parametrize("how", ["fp32", "bf16", "bf16 compiled", "bf16 compiled, all again", "bf16 compiled, part again", "fp16"])
def test_a_gpu_trains_as_a_processor_does(how: str, on_processor: Any, tmp_path: Path, tiny_checkpoint: Path,
                                          tiny_tokens: Path) -> None:
    stream = build_stream(STREAM, tiny_tokens)
    expected = on_processor("causal", tiny_checkpoint, stream)
    recompute = "full" if "all again" in how else "selective" if "part again" in how else "none"
    run(tmp_path, tiny_checkpoint, stream, precision=how[:4], compile="compiled" in how, recompute=recompute,
        held_out=open_held_out(tiny_tokens, sequence_length=64, vocab_size=97))
    assert len(losses(tmp_path)) == len(expected)
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=2e-3 if how == "fp32" else 3e-2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("objective", ["ul2", "prefix", "glm", "unilm"])
def test_rows_read_both_ways(objective: str, compiled: bool, on_processor: Any, tmp_path: Path,
                             tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens = tmp_path_factory.mktemp("tokens")
    names = ("[MASK]", "[sMASK]", "[gMASK]", "<sop>", "<eop>", "[CLS]", "[SEP]")
    texts = [np.append(3 + (start + np.arange(40 + 2 * start)) % 90, 1) for start in range(80)]
    write_tokens(tokens, {"counting": [(text,) for text in texts]}, vocab_size=210, eos_id=1,
                 special={**SPECIAL, **{name: 203 + at for at, name in enumerate(names)}})
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("wide"), vocab_size=210)
    made = build_stream(StreamConfig(objective=objective, sequence_length=96, batch_rows=4, piece_length=40), tokens)
    expected = on_processor(objective, checkpoint, made, tokens=3000)
    run(tmp_path, checkpoint, made, tokens=3000, precision="bf16" if compiled else "fp32", compile=compiled)
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=3e-2 if compiled else 2e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["openba", "t5"])
def test_encoder_decoders(kind: str, compiled: bool, on_processor: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens, checkpoint = make_pairs(tmp_path_factory.mktemp("pairs")), make_pairs_model(kind, tmp_path_factory.mktemp(kind))
    stream = build_stream(stream_config(), tokens)
    expected = on_processor(kind, checkpoint, stream, tokens=6000)
    run(tmp_path, checkpoint, stream, tokens=6000, precision="bf16" if compiled else "fp32", compile=compiled)
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=3e-2 if compiled else 2e-3)


def test_distillation(on_processor: Any, tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                      tmp_path_factory: pytest.TempPathFactory) -> None:
    stream, teacher = build_stream(STREAM, tiny_tokens), make_checkpoint(tmp_path_factory.mktemp("teacher"), seed=5)
    expected = on_processor("distilled", tiny_checkpoint, stream, teacher=teacher)
    run(tmp_path, tiny_checkpoint, stream, teacher=teacher)
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=2e-3)


def content(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.name not in ("metrics.jsonl", "state")}


@pytest.mark.parametrize("compiled", [False, True])
def test_stopped_and_resumed_run_is_bitwise_equal(compiled: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model and documents large enough that kernels split their sums, in bf16 with deterministic kernels."""
    tokens = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(3)
    texts = [np.append(3 + (int(rng.integers(90)) + np.arange(int(rng.integers(300, 1000)))) % 90, 2) for _ in range(100)]
    write_tokens(tokens, {"en": [(text,) for text in texts]}, vocab_size=97, eos_id=2)
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("wide"), layers=3, hidden_size=512, intermediate_size=1024,
                                 max_position_embeddings=1024)
    stream = build_stream(StreamConfig(sequence_length=1024, batch_rows=4, packing="best-fit"), tokens)
    more = {"precision": "bf16", "compile": compiled, "tokens": 40_000, "micro_rows": 2}
    run(tmp_path / "whole", checkpoint, stream, **more)
    calls = iter(range(1, 1000))
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", checkpoint, stream, stop=lambda: next(calls) % 4 == 0, **more)
    run(tmp_path / "cut", checkpoint, stream, **more)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_out_of_memory_names_the_setting(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    stream = build_stream(StreamConfig(sequence_length=64, batch_rows=4096, packing="best-fit"), tiny_tokens)
    held = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(held + 0.002)
    try:
        with pytest.raises(ConfigError, match="out of memory; found 4096 rows of 64 tokens in one forward pass; set micro_rows: 2048"):
            run(tmp_path, tiny_checkpoint, stream, micro_rows=4096, tokens=300_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_products_in_8_bits(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply in 8 bits")
    tokens = make_tokens(tmp_path_factory.mktemp("tokens"), documents=2000)
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512)
    stream = build_stream(StreamConfig(sequence_length=256, batch_rows=16, packing="best-fit"), tokens)
    for fp8 in (False, True):
        run(tmp_path / str(fp8), checkpoint, stream, precision="bf16", compile=True, fp8=fp8, tokens=60_000, lr=3e-3)
    np.testing.assert_allclose(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=5e-2)
