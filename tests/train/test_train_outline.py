"""A model is laid out before its matrices are read, and a process reads what it keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from penjing.errors import InputError
from penjing.models.checkpoint import Checkpoint, load_model, open_checkpoint, write_checkpoint
from penjing.train import exporting
from penjing.train import outline as module
from penjing.train.outline import outline
from tests.train.conftest import make_checkpoint
from tests.train.test_train_seq2seq import make


@pytest.fixture(scope="module", params=["tied", "untied", "openba", "t5", "deep t5", "gpt2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param in ("openba", "t5"):
        return make(request.param, path)
    if request.param == "deep t5":  # whose cache transformers makes too small
        from transformers import T5Config, T5ForConditionalGeneration

        T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=3, num_heads=4,
                                            decoder_start_token_id=0)).save_pretrained(path)
        return path
    if request.param == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
                                   eos_token_id=2)).save_pretrained(path)
        return path
    return make_checkpoint(path, tie_word_embeddings=request.param == "tied")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is read from checkpoints, name and rows."""
    found: list[tuple[str, Any]] = []
    real = Checkpoint.read

    def spy(self: Checkpoint, name: str, rows: Any = None) -> Any:
        found.append((name, rows))
        return real(self, name, rows)

    monkeypatch.setattr(Checkpoint, "read", spy)
    return found


def test_an_outline_is_filled_to_the_whole_model(checkpoint: Path, read: list[tuple[str, Any]]) -> None:
    expected = load_model(checkpoint)
    made = outline(checkpoint)
    assert made is not None
    model, unread = made
    empty = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert empty == {name for name, parameter in expected.named_parameters() if parameter.ndim > 1}
    assert not empty & {name for name, _ in read}
    unread.fill(model, torch.device("cpu"))
    assert sorted(name for name, _ in read if name in empty) == sorted(empty)  # each once, shared ones too
    state = dict(model.state_dict())
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(expected.named_buffers(), model.named_buffers(), strict=True))
    ids = {"input_ids": torch.arange(3, 40)[None]} | ({"decoder_input_ids": torch.arange(3, 9)[None]}
                                                      if model.config.is_encoder_decoder else {})  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(model(**ids).logits, expected(**ids).logits)


@pytest.mark.parametrize("how", ["other names", "two tables where the config has one", "8 bits", "scales beside the numbers"])
def test_what_is_not_plainly_there_is_read_whole(how: str, tmp_path: Path) -> None:
    source = load_model(make_checkpoint(tmp_path / "a"))
    config, weights = source.config.to_dict(), {name: tensor for name, tensor in source.state_dict().items() if name != "lm_head.weight"}
    if how == "other names":
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    elif how.startswith("two"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    elif how == "8 bits":
        weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    else:
        config["quantization_config"] = {"quant_method": "fp8"}
    write_checkpoint(tmp_path / "b", config=config, tensors=weights)
    if how == "scales beside the numbers":
        assert not module._fits(source, open_checkpoint(tmp_path / "b"))
    else:
        assert outline(tmp_path / "b") is None


def test_code_beside_the_weights_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_checkpoint(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for read_it in (outline, load_model):
        with pytest.raises(InputError, match="transformers has no 'strange'"):
            read_it(path)


@pytest.fixture
def four_processes() -> Iterator[Any]:
    """A group in which this process is the second of four and talks to nobody."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


def test_of_a_cut_matrix_its_own_rows_are_read(tiny_checkpoint: Path, four_processes: Any, read: list[tuple[str, Any]]) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    made = outline(tiny_checkpoint)
    assert made is not None
    model, unread = made
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    for linear, side in ((mlp.gate_proj, 0), (mlp.down_proj, 1)):
        linear.weight = torch.nn.Parameter(distribute_tensor(linear.weight.data, four_processes, [Shard(side)]))
    several = mlp.up_proj.weight.data.unflatten(0, (2, -1))  # as a matrix that holds two, one after the other
    mlp.up_proj.weight = torch.nn.Parameter(distribute_tensor(several, four_processes, [Shard(1)]))
    unread.watch(model)
    unread.fill(mlp, torch.device("cpu"))
    whole = load_model(tiny_checkpoint).get_submodule("model.layers.0.mlp")
    assert ("model.layers.0.mlp.gate_proj.weight", slice(16, 32)) in read
    assert torch.equal(mlp.gate_proj.weight.to_local(), whole.gate_proj.weight[16:32])
    assert torch.equal(mlp.down_proj.weight.to_local(), whole.down_proj.weight[:, 16:32])
    assert torch.equal(mlp.up_proj.weight.to_local(), whole.up_proj.weight.unflatten(0, (2, -1))[:, 8:16])


@pytest.mark.parametrize("generation", [True, False])
def test_exports_are_the_same_bytes_either_way(generation: bool, checkpoint: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    if not generation:
        checkpoint = Path(shutil.copytree(checkpoint, tmp_path / "without"))
        (checkpoint / "generation_config.json").unlink(missing_ok=True)
    trained = {name: parameter.detach() + 1 for name, parameter in list(load_model(checkpoint).named_parameters())[:5]}
    exporting.export(None, tmp_path / "a", source=checkpoint, weights=trained)
    monkeypatch.setattr(module, "outline", lambda path: None)
    exporting.export(None, tmp_path / "b", source=checkpoint, weights=trained)
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1]
