"""Calibration: the same numbers with one layer in memory as with all, and numbers that mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.errors import ConfigError, InputError
from penjing.models import tiny
from penjing.prune.calibrate import calibrate, load_calibration
from penjing.prune.layerwise import Layered, Passes

FAMILIES = ("llama", "qwen3", "gpt2", "codegen", "bloom", "t5-gated", "openba")


def samples(*, seq2seq: bool = False, count: int = 12, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(3, 48, 10), **({"labels": rng.integers(3, 48, 7)} if seq2seq else {})}
            for _ in range(count)]


@pytest.mark.parametrize("case", FAMILIES)
def test_one_layer_at_a_time_gives_what_the_whole_model_gives(case: str, tmp_path: Path) -> None:
    model = tiny.save(case, tmp_path)
    text = samples(seq2seq=model.config.is_encoder_decoder)
    streamed = calibrate(tmp_path, text, streamed=True, rows=5)
    whole = calibrate(tmp_path, text, streamed=False, rows=12)
    assert streamed.readers == whole.readers and streamed.order == whole.order
    assert streamed.arrays.keys() == whole.arrays.keys()
    for name, value in whole.arrays.items():
        if not name.endswith(".sample"):
            np.testing.assert_allclose(streamed.arrays[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


def test_streaming_holds_one_layer(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    model = Layered(tmp_path, streamed=True)
    here = [name for name, parameter in model.model.named_parameters() if not parameter.is_meta]
    assert here == ["model.norm.weight"]  # of the embedding only the rows of a batch are read
    model.load(model.layers[1])
    assert not model.module("model.layers.1.mlp.down_proj.weight").weight.is_meta
    assert model.module("model.layers.0.mlp.down_proj.weight").weight.is_meta
    model.release(model.layers[1])
    assert model.module("model.layers.1.mlp.down_proj.weight").weight.is_meta


def test_output_energy_is_the_error_of_leaving_one_place_out(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path)
    text = samples()
    found = calibrate(tmp_path, text)
    inputs: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    hooks = [layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: inputs.__setitem__("ffn", a[0])),
             layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: inputs.__setitem__("head", a[0]))]
    with torch.no_grad():
        model(torch.from_numpy(np.stack([item["input_ids"] for item in text])))
        for hook in hooks:
            hook.remove()
        for unit, projection, width in (("ffn", layer.mlp.down_proj, 1), ("head", layer.self_attn.o_proj, 8)):
            whole = projection(inputs[unit])
            for place in (0, 2):
                without = inputs[unit].clone()
                without[..., place * width:(place + 1) * width] = 0
                error = (projection(without) - whole).square().sum(-1).mean().item()
                assert found.arrays[f"layers.1.{unit}.output_energy"][place] == pytest.approx(error, rel=1e-4)


def test_block_influence_is_how_far_a_layer_turns_the_stream(tmp_path: Path) -> None:
    model = tiny.make("llama")
    with torch.no_grad():  # a layer that writes nothing turns nothing
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    influence = calibrate(tmp_path, samples()).arrays["layers.block_influence"]
    assert influence[1] == pytest.approx(0, abs=1e-6) and influence[0] > 0.01 and influence[2] > 0.01


def test_taylor_is_the_slope_of_the_loss(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path)
    text = samples(count=1)
    scores = calibrate(tmp_path, text, taylor=True).arrays["layers.2.ffn.taylor"]
    ids = torch.from_numpy(text[0]["input_ids"])[None]
    place = int(scores.argmax())

    def loss(scale: float) -> float:
        hook = model.model.layers[2].mlp.down_proj.register_forward_pre_hook(
            lambda m, a: (a[0] * torch.where(torch.arange(24) == place, scale, 1.0),))
        with torch.no_grad():
            value = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum")
        hook.remove()
        return value.item()

    assert scores[place] == pytest.approx(abs(loss(1.01) - loss(0.99)) / 0.02, rel=1e-2)


def test_saved_calibration_reads_back(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    found = calibrate(tmp_path, samples())
    found.save(tmp_path)
    again = load_calibration(tmp_path)
    assert (again.readers, again.writers, again.order, again.source, again.tokens, again.sequences) == (
        found.readers, found.writers, found.order, found.source, 120, 12)
    for name, value in found.arrays.items():
        assert np.array_equal(again.arrays[name], value)
    (tmp_path / "scores.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not readable as a calibration"):
        load_calibration(tmp_path)


def test_wrong_text_is_refused(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    with pytest.raises(InputError, match="another tokenizer; found token id 99; expected ids below 48"):
        calibrate(tmp_path, [{"input_ids": np.array([1, 99])}])
    with pytest.raises(ConfigError, match="nothing to measure the model on"):
        calibrate(tmp_path, [])


def test_an_error_inside_a_pass_comes_out(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    model = Layered(tmp_path, streamed=True)
    with Passes(model.model, model.forward, [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}], model.layers) as passes:
        passes.to(model.layers[0])
        with pytest.raises((RuntimeError, NotImplementedError)):  # its weights were never read
            passes.finish()
