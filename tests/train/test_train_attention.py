"""Documents in a packed row do not see each other, and the operator is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.errors import ConfigError
from penjing.train import attention, strips, tiles
from penjing.train.attention import attend, cross_isolation, part_columns, part_isolation, self_isolation


@pytest.fixture(autouse=True, params=["tiles", "flash", "strips", "strips, nothing kept"])
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds for documents in tiles and for long ones, which tiny tests reach by lowering the limits."""
    tiles._plan.cache_clear()
    if request.param != "tiles":
        monkeypatch.setattr(tiles, "LEVELS", (8,))
        if request.param == "flash":
            monkeypatch.setattr(strips, "UP_TO", 0)
            monkeypatch.setattr(strips, "UP_TO_WIDE", 0)
        monkeypatch.setattr(strips, "_STRIP", 4)
        monkeypatch.setattr(strips, "_PLACES", 150)
    if request.param.endswith("nothing kept"):
        monkeypatch.setattr(strips, "KEPT_UP_TO", 0)


def segments(rows: int, length: int, mean: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = np.zeros((rows, length), np.int32)
    for row in made:
        at, number = 0, 1
        while at < length - 5:
            size = int(rng.integers(1, 2 * mean))
            row[at : min(length - 5, at + size)] = number
            at, number = at + size, number + 1
    return made


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hts,shd->thd", shares, v)


def beginnings(part: np.ndarray) -> np.ndarray:
    """The first third of every third document, all of another third's, nothing of the rest."""
    made = np.zeros(part.shape, bool)
    for row, line in zip(made, part, strict=True):
        for number in range(1, line.max() + 1):
            place = np.flatnonzero(line == number)
            row[place[: (0, place.size // 3, place.size)[number % 3]]] = True
    return made


def leaves(lengths: tuple[int, int], heads: tuple[int, int]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(lengths[0], heads[0], 8), (lengths[1], heads[1], 8), (lengths[1], heads[1], 8)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(out: torch.Tensor, expected: torch.Tensor, tensors: list[torch.Tensor], real: torch.Tensor) -> None:
    pull = torch.randn_like(expected) * real[:, None, None]
    ours = torch.autograd.grad(out, tensors, pull, retain_graph=True)
    theirs = torch.autograd.grad(expected, tensors, pull)
    torch.testing.assert_close(out * real[:, None, None], expected * real[:, None, None], rtol=0, atol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("variant", ["causal", "both ways", "window", "prefix", "reversed"])
def test_attention_inside_documents_only(heads: tuple[int, int], variant: str) -> None:
    part = segments(3, 64, 15, seed=1)
    rng = np.random.default_rng(5)
    prefix = rng.random(part.shape) < 0.3 if variant == "prefix" else None
    backwards = np.array([True, False, True]) if variant == "reversed" else None
    layout = self_isolation(part, causal=variant != "both ways", prefix_BS=prefix, reversed_B=backwards)
    tensors = leaves((part.size, part.size), heads)
    place = torch.from_numpy(part.reshape(-1).astype(np.int64) + np.repeat(np.arange(3) * 1000, 64))
    real = torch.from_numpy(part.reshape(-1) != 0)
    seen = (place[:, None] == place[None]) & real[None]
    order = torch.arange(part.size)
    earlier = order[:, None] >= order[None]
    if variant == "reversed":
        turned = torch.from_numpy(np.repeat(backwards, 64))
        earlier = torch.where(turned[:, None], order[:, None] <= order[None], earlier)
    if variant == "prefix":
        earlier = earlier | torch.from_numpy(prefix.reshape(-1))[None]
    if variant == "window":
        earlier = earlier & (order[:, None] - order[None] < 7)
    if variant != "both ways":
        seen = seen & earlier
    out = attend(*tensors, layout, scale=0.3, window=7 if variant == "window" else None)
    assert_same(out, reference(*tensors, seen, 0.3), tensors, real)


@pytest.mark.parametrize("length", [600, 1100])
def test_long_documents_under_mixed_precision(length: int) -> None:
    """Rotary embeddings leave queries and keys in fp32 while values are bf16."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(length, 2, 16, requires_grad=True) for _ in range(3))
    layout = self_isolation(np.ones((1, length), np.int32), causal=True)
    exact, rough = attend(q, k, v, layout, scale=0.25), attend(q, k, v.bfloat16(), layout, scale=0.25)
    assert rough.dtype == torch.bfloat16
    for ours, theirs in zip(torch.autograd.grad(rough.float().square().sum(), (q, k, v)),
                            torch.autograd.grad(exact.square().sum(), (q, k, v)), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05)


def test_cross_attention_pairs_documents() -> None:
    decoder, encoder = segments(3, 40, 9, seed=2), segments(3, 70, 14, seed=3)
    layout = cross_isolation(decoder, encoder)
    tensors = leaves((decoder.size, encoder.size), (4, 4))
    place_q = torch.from_numpy(decoder.reshape(-1).astype(np.int64) + np.repeat(np.arange(3) * 1000, 40))
    place_k = torch.from_numpy(encoder.reshape(-1).astype(np.int64) + np.repeat(np.arange(3) * 1000, 70))
    real = torch.from_numpy(decoder.reshape(-1) != 0)
    seen = (place_q[:, None] == place_k[None]) & real[:, None]
    out = attend(*tensors, layout, scale=0.3)
    assert_same(out, reference(*tensors, seen, 0.3), tensors, real)


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("variant", ["causal", "window", "reversed"])
def test_parts_of_rows_see_what_whole_rows_see(variant: str, ways: int) -> None:
    """Every part's queries against the keys that its chunks are shown: outputs and gradients are those of whole rows."""
    part = segments(3, 64, 15, seed=1)
    backwards = np.array([True, False, True]) if variant == "reversed" else None
    window = 7 if variant == "window" else None
    tensors = leaves((part.size, part.size), (4, 2))
    expected = attend(*tensors, self_isolation(part, causal=True, reversed_B=backwards), scale=0.3, window=window)
    real = torch.from_numpy(part.reshape(-1) != 0)
    q, k, v = (x.unflatten(0, (3, 64)) for x in tensors)
    out = torch.zeros_like(expected).unflatten(0, (3, 64))
    counts = []
    for rank in range(ways):
        layout = part_isolation(part, causal=True, rank=rank, ways=ways, group=None, reversed_B=backwards)
        columns = torch.from_numpy(part_columns(64, rank=rank, ways=ways))
        shown = [torch.cat([x[:, :span] for span in layout.spans], 1).flatten(0, 1) for x in (k, v)]
        made = attend(q[:, columns].flatten(0, 1), *shown, layout, scale=0.3, window=window)
        out = out.index_copy(1, columns, made.unflatten(0, (3, -1)))
        counts.append(sum(layout.spans))
    assert len(set(counts)) == 1  # as many keys for every part
    assert_same(out.flatten(0, 1), expected, tensors, real)


def test_packed_rows_equal_documents_alone(tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import Objective, load

    batch = build_stream(StreamConfig(sequence_length=128, batch_rows=3, packing="best-fit"), tiny_tokens).batch(0)
    model = load(tiny_checkpoint).double()
    objective = Objective(model, TrainConfig(tokens=1))
    packed = split(batch, slice(None))
    objective(packed).total.backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    plain = load(tiny_checkpoint).double()
    plain.set_attn_implementation("sdpa")
    total = 0.0
    for row in range(3):
        for number in range(1, int(batch.segments_BS[row].max()) + 1):
            where = batch.segments_BS[row] == number
            tokens = torch.from_numpy(batch.tokens_BS[row][where])[None]
            targets = torch.from_numpy(batch.targets_BS[row][where])[None]
            logits = plain(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(logits[0], targets[0], ignore_index=-100, reduction="sum")
            loss.backward()
            total += float(loss.detach())
    assert total == pytest.approx(float(objective(packed).total.detach()), abs=1e-8)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=0, atol=1e-9)


def test_neighbours_matter_without_isolation(tiny_checkpoint: Path, tiny_tokens: Path) -> None:
    """The control: with the documents of a row joined into one the loss is another one."""
    from penjing.objectives.stream import StreamConfig, build_stream
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import Objective, load

    batch = build_stream(StreamConfig(sequence_length=128, batch_rows=3, packing="best-fit"), tiny_tokens).batch(0)
    objective = Objective(load(tiny_checkpoint).double(), TrainConfig(tokens=1))
    apart = float(objective(split(batch, slice(None))).total.detach())
    batch.segments_BS[batch.segments_BS > 0] = 1
    assert abs(float(objective(split(batch, slice(None))).total.detach()) - apart) > 1e-3


def test_refuses_what_would_be_dropped_silently() -> None:
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="needs isolation"):
        attention.transformers_attention(None, query, query, query, None)


def test_compiles_to_one_graph_for_any_layout() -> None:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, part: np.ndarray) -> torch.Tensor:
        layout = self_isolation(part, causal=True)
        op = torch.ops.penjing.isolated
        return op(q, k, v, layout.cu_q_N1, layout.cu_k_N1, layout.kind_N, layout.prefix_T, True, 0.3, 0)[0]

    first, second = segments(2, 32, 6, seed=1), segments(2, 32, 9, seed=2)
    assert self_isolation(first, causal=True).cu_q_N1.shape == self_isolation(second, causal=True).cu_q_N1.shape
    tensors = leaves((64, 64), (4, 4))
    torch.library.opcheck(torch.ops.penjing.isolated.default, (
        *tensors, *(getattr(self_isolation(first, causal=True), name) for name in ("cu_q_N1", "cu_k_N1", "kind_N", "prefix_T")),
        True, 0.3, 0), test_utils=("test_schema", "test_faketensor"))
    assert run(*tensors, first).shape == run(*tensors, second).shape


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("variant", ["causal", "both ways", "window", "prefix", "reversed"])
def test_passes_of_a_gpu_give_what_a_processor_gives(heads: tuple[int, int], variant: str) -> None:
    """The same layouts through the operator that a GPU is given, here computed by its processor's kernel."""
    part = segments(3, 64, 15, seed=1)
    prefix = beginnings(part) if variant == "prefix" else None
    backwards = np.array([True, False, True]) if variant == "reversed" else None
    layout = self_isolation(part, causal=variant != "both ways", prefix_BS=prefix, reversed_B=backwards)
    tensors = leaves((part.size, part.size), heads)
    window = 7 if variant == "window" else None
    real = torch.from_numpy(part.reshape(-1) != 0)
    out = attention._attend_on_gpu(*tensors, layout, 0.3, window)
    assert_same(out, attend(*tensors, layout, scale=0.3, window=window), tensors, real)


def test_passes_for_parts_of_reversed_rows() -> None:
    part, backwards = segments(2, 64, 15, seed=1), np.array([True, False])
    for rank in range(2):
        layout = part_isolation(part, causal=True, rank=rank, ways=2, group=None, reversed_B=backwards)
        tensors = leaves((64, 2 * sum(layout.spans)), (4, 2))
        real = torch.from_numpy(part[:, part_columns(64, rank=rank, ways=2)].reshape(-1) != 0)
        assert_same(attention._attend_on_gpu(*tensors, layout, 0.3, None), attend(*tensors, layout, scale=0.3), tensors, real)


def test_passes_do_not_exist_for_scattered_prefixes() -> None:
    part = segments(1, 64, 15, seed=1)
    layout = self_isolation(part, causal=True, prefix_BS=np.random.default_rng(5).random(part.shape) < 0.3)
    with pytest.raises(ConfigError, match="on a processor"):
        attention._attend_on_gpu(*leaves((64, 64), (4, 2)), layout, 0.3, None)
