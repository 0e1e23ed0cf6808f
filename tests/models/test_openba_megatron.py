"""Megatron and back: exact for any number of ranks, ragged ranks joined, damage and code refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from penjing.errors import ConfigError, InputError
from penjing.models import tiny
from penjing.models.checkpoint import load_model, open_checkpoint, write_checkpoint
from penjing.models.convert.openba_megatron import from_megatron, padded_vocab, to_megatron


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = tiny.make("openba")
    state = {name: value for name, value in model.state_dict().items() if "embed_tokens" not in name}
    state["lm_head.weight"] = state["shared_embedding.weight"].clone()
    write_checkpoint(tmp_path / "source", config=model.config.to_dict(), tensors=state)
    return tmp_path / "source"


def test_ranks_are_lossless_up_to_the_padding(source: Path, tmp_path: Path) -> None:
    here = source
    for ranks in (3, 1, 2, 6):
        to_megatron(here, tmp_path / f"m{ranks}", tensor_parallel=ranks)
        here = tmp_path / f"hf{ranks}"
        from_megatron(tmp_path / f"m{ranks}", here)
    first, last = open_checkpoint(source), open_checkpoint(here)
    assert sorted(first.names) == sorted(last.names)
    for name in first.names:
        value = last.read(name)
        rows = slice(0, 48) if name in ("shared_embedding.weight", "lm_head.weight", "lm_head.bias") else slice(None)
        assert torch.equal(value[rows], first.read(name))
    assert last.shape("shared_embedding.weight") == (768, 32) and last.shape("lm_head.bias") == (768,)
    assert torch.equal(last.read("lm_head.weight")[-1], first.read("lm_head.weight")[-1])
    ids = torch.randint(3, 48, (2, 7))
    with torch.no_grad():
        one, two = (load_model(path)(input_ids=ids, decoder_input_ids=ids).logits for path in (source, here))
    assert torch.equal(one, two[..., :48])


def test_ragged_ranks_are_joined(source: Path, tmp_path: Path) -> None:
    """The authors' tool leaves ranks with unequal numbers of heads; the layout is head-major, so that they join in order."""
    to_megatron(source, tmp_path / "m", tensor_parallel=1)
    file = tmp_path / "m" / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([Namespace]):
        whole = torch.load(file, weights_only=True)
    parts: list[dict] = [{"language_model": {"embedding": {"word_embeddings": {}}, "encoder": {}, "decoder": {}}, "lm_head": {}}
                         for _ in range(2)]
    for stack in ("encoder", "decoder"):
        for name, value in whole["model"]["language_model"][stack].items():
            heads = 8 * {"query_key_value": 3, "query": 1, "key_value": 2, "dense": 1}.get(name.split(".")[-2], 0)
            if name.endswith(("dense.weight", "w2.weight")):
                at = 2 * heads if heads else 5
                halves = (value[:, :at], value[:, at:])
            elif (heads and "dense" not in name) or ".mlp.w" in name:
                at = 2 * heads if heads else 5
                halves = (value[:at], value[at:])
            else:
                halves = (value, value)
            for part, half in zip(parts, halves, strict=True):
                part["language_model"][stack][name] = half.clone()
    embedding = whole["model"]["language_model"]["embedding"]["word_embeddings"]["weight"]
    for part, half, bias in zip(parts, embedding.chunk(2), whole["model"]["lm_head"]["bias"].chunk(2), strict=True):
        part["language_model"]["embedding"]["word_embeddings"]["weight"] = half.clone()
        part["lm_head"]["bias"] = bias.clone()
    whole["args"].hidden_size = 9999
    for rank, part in enumerate(parts):
        folder = tmp_path / "ragged" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        torch.save({"args": whole["args"], "model": part}, folder / "model_optim_rng.pt")
    config = from_megatron(tmp_path / "ragged", tmp_path / "out")
    assert (config["hidden_size"], config["num_heads"], config["ffn_hidden_size"]) == (32, 6, 24)
    first, joined = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert torch.equal(joined.read("decoder.block.2.inter_attn.kv.weight"), first.read("decoder.block.2.inter_attn.kv.weight"))
    assert torch.equal(joined.read("encoder.block.1.mlp.fc_in.weight"), first.read("encoder.block.1.mlp.fc_in.weight"))


@pytest.mark.parametrize(("ranks", "rows"), [(1, 250_240), (4, 250_368), (8, 250_880)])
def test_padded_vocabularies(ranks: int, rows: int) -> None:
    assert padded_vocab(250_203, tensor_parallel=ranks) == padded_vocab(250_204, tensor_parallel=ranks) == rows


def test_what_megatron_cannot_say_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"heads 6 does not divide among 4 ranks"):
        to_megatron(source, tmp_path / "m", tensor_parallel=4)
    tiny.save("openba", tmp_path / "other")
    with pytest.raises(InputError, match=r"the head is not a copy of the embedding"):
        to_megatron(tmp_path / "other", tmp_path / "m")
    with pytest.raises(InputError, match=r"no Megatron checkpoint"):
        from_megatron(tmp_path, tmp_path / "out")
    folder = tmp_path / "code" / "mp_rank_00"
    folder.mkdir(parents=True)
    torch.save({"args": Path("/tmp"), "model": {}}, folder / "model_optim_rng.pt")
    with pytest.raises(InputError, match=r"this pickle holds more than tensors and settings"):
        from_megatron(tmp_path / "code", tmp_path / "out")
