"""Wrong input is named in one sentence, and what was asked for is either whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError, InputError
from penjing.files import read_json, write_json
from penjing.models import tiny
from penjing.models.checkpoint import open_checkpoint, write_checkpoint
from penjing.prune import cut, plan
from penjing.prune.plan import Operation
from penjing.stages import prune

Damage = Callable[[Path], Any]


def run(source: Path, out: Path, **settings: Any) -> None:
    out.mkdir(exist_ok=True)
    prune.run(prune.Config(**({"layers": 2} | settings)), {"checkpoint": source}, out, Job())


def _config(**changes: Any) -> Damage:
    def damage(path: Path) -> None:
        write_json(path / "config.json", {**read_json(path / "config.json"), **changes})

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(path: Path) -> None:
        with open_checkpoint(path) as source:
            state, config = {name: source.read(name) for name in source.names}, source.config
        change(state)
        write_checkpoint(path, config=config, tensors=state)

    return damage


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return damage


def _header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def rewritten(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        changed = json.dumps(change(header) or header).encode()
        return len(changed).to_bytes(8, "little") + changed + data[8 + length:]

    return _bytes(rewritten)


def _pickle(path: Path) -> None:
    (path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.zeros(32), "run me": Path("/")}, path / "pytorch_model.bin")


@pytest.mark.parametrize(("damage", "message"), [
    (_config(model_type="mamba3"), r"unknown architecture 'mamba3'.*write its table of axes in models/families/mamba3.py and prove"),
    (_config(hidden_size="wide"), "'hidden_size' is not a size.*found 'wide'"),
    (_config(intermediate_size=None), "'intermediate_size' is missing"),
    (_config(intermediate_size=28), "'model.layers.0.mlp.gate_proj.weight' has the wrong shape"),
    (_weights(lambda state: state.pop("model.layers.1.mlp.up_proj.weight")), "1 of the 30 tensors of llama are missing, first 'model"),
    (_weights(lambda state: state.update({"model.layers.0.extra": torch.zeros(2)})), "1 tensors are in no row of the llama table"),
    (_bytes(lambda data: data[:-10]), "safetensors file is truncated"),
    (_bytes(lambda data: data[:6]), "not a safetensors file, or truncated"),
    (_header(lambda header: [header]), "safetensors header is damaged.*found list; expected an object"),
    (_header(lambda header: header["lm_head.weight"].pop("shape")), "safetensors header is damaged"),
    (_header(lambda header: header.update({"lm_head.weight": {"dtype": "F32"}})), "damaged at tensor 'lm_head.weight'"),
    (_header(lambda header: header["lm_head.weight"].update(data_offsets=[-8, 6136])), "damaged at tensor 'lm_head.weight'"),
    (_pickle, "this pickle holds more than tensors and is not opened, because opening it could run code"),
])
def test_damaged_models_are_refused_before_anything_is_written(damage: Damage, message: str, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "model", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("settings", "message"), [
    ({"layers": 0}, "wrong layers of layers; found 0; expected a whole number above 0"),
    ({"layers": []}, "layers is cut to 0"),
    ({"layers": [0, 3]}, "index out of range among the layers of layers; found 3; expected 0 to 2"),
    ({"layers": [0, 1, 1]}, "index repeated among the layers of layers; found 1"),
    ({"layers": None, "drop_layers": [0, 1, 2]}, "cannot drop 3 of 3 layers"),
    ({"layers": None, "drop_layers": [7]}, "no such layer to drop; found 7"),
    ({"hidden": 0}, "wrong hidden; found 0"),
    ({"hidden": 64}, "hidden cannot grow from 32 to 64"),
    ({"heads": 3}, "hidden 32 is not a multiple of 3 heads"),
    ({"ffn": -4}, "wrong ffn; found -4"),
    ({"layers": {"encoder": 1}}, "llama has no stack 'encoder'"),
    ({"keep": 0.5}, "'keep' finds the sizes itself"),
    ({"importance": "activations"}, "unknown importance metric 'activations'.*did you mean 'activation'"),
    ({"importance": "taylor", "hidden": 16}, "given nothing to measure it on"),
])
def test_impossible_cuts_are_refused_before_anything_is_written(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "model", tmp_path / "out", **settings)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"layers": ["0-1"]}, InputError, "'layers' is not an object of names and values"),
    ({"keep": {"hidden": "0-99"}}, ConfigError, "index out of range among the places of hidden; found 99"),
    ({"keep": {"hidden": ""}}, ConfigError, "the places of hidden are cut to zero"),
    ({"keep": {"hiden": "0-3"}}, ConfigError, "llama has no unit 'hiden' to cut"),
    ({"keep": {"layers.0.ffn": "0-3"}}, ConfigError, "llama has one number of ffn for all layers"),
    ({"operations": {"model.norm.weight": {"kind": "multiply"}}}, InputError, "the operations of 'model.norm.weight' are not a list"),
    ({"operations": {"model.norm.weight": [{"kind": "replace", "array": "array-0000"}]}}, InputError, "weight file not found"),
    ({"operations": {"model.norm.weight": [{"kind": "turn"}]}}, ConfigError, "unknown operation 'turn' on 'model.norm.weight'"),
    ({"operations": {"model.nrm.weight": [{"kind": "multiply"}]}}, ConfigError, "operations for 'model.nrm.weight', which the cut"),
])
def test_plans_edited_wrongly_are_refused(change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        plan.build(source.config, layers={"layers": [0, 2]}).save(tmp_path / "plan")
    write_json(tmp_path / "plan" / "plan.json", {**read_json(tmp_path / "plan" / "plan.json"), **change})
    (tmp_path / "out").mkdir()
    with pytest.raises(error, match=message):
        prune.run(prune.Config(), {"checkpoint": tmp_path / "model", "plan": tmp_path / "plan"}, tmp_path / "out", Job())
    assert not list((tmp_path / "out").iterdir())


def test_a_plan_is_for_one_model(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "one")
    tiny.save("llama", tmp_path / "same-shape", seed=1)
    tiny.save("mistral", tmp_path / "other")
    with open_checkpoint(tmp_path / "one") as source:
        identity = {"headers": plan.header_hash(source), "content": source.fingerprint()}
        made = plan.build(source.config, layers={"layers": [0, 2]}, source=identity)
    with open_checkpoint(tmp_path / "other") as source, pytest.raises(InputError, match="the plan is for another model"):
        cut.apply(made, source, tmp_path / "out")
    with open_checkpoint(tmp_path / "same-shape") as source, pytest.raises(InputError, match="from other weights of the same shape"):
        cut.apply(made, source, tmp_path / "out")
    with open_checkpoint(tmp_path / "one") as source:
        wrong = plan.with_operations(made, {"model.norm.weight": [Operation("scale", 3, np.ones(32, np.float32))]})
        with pytest.raises(ConfigError, match="'scale' on 'model.norm.weight' names a dimension it does not have; found 3; expected 0"):
            cut.apply(wrong, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_breaks_while_it_is_written_leaves_no_model(tmp_path: Path) -> None:
    """A source that is cut off after its headers were read: the output directory is gone, or not a model."""
    tiny.save("llama", tmp_path / "model")
    for out, existed in ((tmp_path / "new", False), (tmp_path / "old", True)):
        if existed:
            out.mkdir()
        with open_checkpoint(tmp_path / "model") as source:
            file = tmp_path / "model" / "model.safetensors"
            whole = file.read_bytes()
            made = plan.build(source.config, layers={"layers": [0, 2]})
            file.write_bytes(whole[:-2000])
            with pytest.raises(InputError, match=r"file ended inside tensor '.*'; fetch the file again"):
                cut.apply(made, source, out, check_content=False)
            file.write_bytes(whole)
        assert out.exists() == existed
        with pytest.raises(InputError):
            open_checkpoint(out)
