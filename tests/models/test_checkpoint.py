"""Checkpoints: lazy reading, streamed writing, whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.models import tiny
from penjing.models.checkpoint import Output, from_float, load_model, open_checkpoint, save_model, to_float, write_checkpoint


def test_copy_is_bit_identical_however_the_source_was_sharded(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    hashes = set()
    for kind in ("one", "many", "pickled"):
        with open_checkpoint(tmp_path / kind) as source:
            outputs = [Output.copy(source, name) for name in sorted(source.names)]
            config = {key: value for key, value in source.config.items() if key != "dtype"}
            write_checkpoint(tmp_path / f"{kind}-copy", config=config, tensors=outputs, max_shard_bytes=20_000)
        hashes.add(hash_tree(tmp_path / f"{kind}-copy"))
    assert len(hashes) == 1
    again = load_model(tmp_path / "one-copy")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rows_are_read_in_the_order_asked_for(tmp_path: Path, dtype: str) -> None:
    value = torch.randn(300, 7).to(getattr(torch, dtype))
    write_checkpoint(tmp_path, config={}, tensors={"a": value, "scalar": torch.tensor(3.0), "none": torch.zeros(0, 4)})
    with open_checkpoint(tmp_path) as source:
        rows = np.random.default_rng(0).permutation(300)[:50]
        assert torch.equal(source.read("a", rows), value[torch.from_numpy(rows)])
        assert torch.equal(source.read("a", slice(5, 9)), value[5:9])
        assert np.array_equal(source.read_float("a"), value.float().numpy())
        assert source.read("scalar").item() == 3.0 and source.read("none").shape == (0, 4)
        small = np.concatenate([chunk.copy() for chunk in source.row_chunks("a", rows, chunk_bytes=100)])
        assert np.array_equal(small, source.read_bits("a", rows))
        with pytest.raises(InputError, match="row out of range in 'a'"):
            source.read("a", [300])


def test_floats_round_as_torch_rounds() -> None:
    values = torch.cat(
        [torch.randn(10_000) * 10.0 ** torch.randint(-30, 30, (10_000,)), torch.tensor([0.0, torch.inf, -torch.inf])]
    )
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        bits = from_float(values.numpy(), name)
        assert np.array_equal(to_float(bits, name), values.to(dtype).float().numpy())


def test_an_interrupted_write_leaves_nothing_and_a_stamped_one_goes_on(tmp_path: Path) -> None:
    value = torch.arange(1000.0).reshape(100, 10)
    calls = []

    def fails() -> list[np.ndarray]:
        calls.append("b")
        raise KeyboardInterrupt

    outputs = [Output.of("a", value), Output("b", "F32", (100, 10), fails)]
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", config={"x": 1}, tensors=outputs, max_shard_bytes=4000)
    assert not (tmp_path / "out").exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "kept", config={"x": 1}, tensors=outputs, max_shard_bytes=4000, stamp="s")
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["model-00001-of-00002.safetensors"]
    before = (tmp_path / "kept" / "model-00001-of-00002.safetensors").stat().st_mtime_ns
    write_checkpoint(tmp_path / "kept", config={"x": 1}, tensors={"a": value, "b": value}, max_shard_bytes=4000, stamp="s")
    assert (tmp_path / "kept" / "model-00001-of-00002.safetensors").stat().st_mtime_ns == before
    write_checkpoint(tmp_path / "fresh", config={"x": 1}, tensors={"a": value, "b": value}, max_shard_bytes=4000, stamp="s")
    assert hash_tree(tmp_path / "kept") == hash_tree(tmp_path / "fresh")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"model.safetensors: safetensors file is truncated"):
        open_checkpoint(tmp_path)
    file.write_bytes(whole[:5])
    with pytest.raises(InputError, match=r"not a safetensors file, or truncated"):
        open_checkpoint(tmp_path)
    file.write_bytes(whole[:8] + b"}" + whole[9:])
    with pytest.raises(InputError, match=r"safetensors header is damaged"):
        open_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"no weights"):
        open_checkpoint(tmp_path)


def test_a_pickle_that_wants_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save({"a": torch.zeros(2), "b": Path("/tmp")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"this pickle holds more than tensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("new_format", [True, False])
def test_bin_files_are_read_by_ranges_where_they_can_be(tmp_path: Path, new_format: bool) -> None:
    whole = torch.arange(40.0).reshape(8, 5)
    state = {
        "whole": whole,
        "part": whole[2:5],
        "turned": whole.t(),
        "half": torch.randn(3, 2).bfloat16(),
        "scalar": torch.tensor(7),
    }
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as source:
        assert set(source.names) == set(state)
        for name, value in state.items():
            assert torch.equal(source.read(name), value)
        assert torch.equal(source.read("part", [2, 0]), whole[[4, 2]])
        assert torch.equal(source.read("turned", slice(1, 3)), whole.t()[1:3])


def test_a_deeper_t5_decoder_generates_once_loaded(tmp_path: Path) -> None:
    model = tiny.save("t5", tmp_path)
    assert model.config.num_decoder_layers > model.config.num_layers
    assert (
        load_model(tmp_path).generate(torch.tensor([[5, 9, 3]]), max_new_tokens=3, do_sample=False, eos_token_id=None).shape[1]
        == 4
    )


def test_models_with_code_of_their_own_do_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "chatglm", "auto_map": {"AutoModelForCausalLM": "code.Model"}})
    )
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"transformers has no 'chatglm'; its own code would have to run"):
        load_model(tmp_path)


def test_saved_model_loads_with_its_companions(tmp_path: Path, shared: Path) -> None:
    source = shared / "models" / "stories260K"
    model = load_model(source)
    save_model(model, tmp_path / "out", tokenizer_from=source)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert not list((tmp_path / "out").glob(".saving*"))
    assert torch.equal(load_model(tmp_path / "out").model.norm.weight, model.model.norm.weight)
    with pytest.raises(InputError, match="cannot be written over its own source"):
        write_checkpoint(source, config={}, tensors={}, source=source)
