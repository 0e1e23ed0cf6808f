"""Depth: OpenBA-V2's sets in both index bases, evenly spaced drops, and rules that look at the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.errors import ConfigError
from penjing.models import tiny
from penjing.models.checkpoint import open_checkpoint
from penjing.prune import depth


def test_openba_sets_relative_to_each_stage() -> None:
    assert depth.openba_stages() == [
        {"encoder": [4, 8], "decoder": [7, 11, 18, 20, 22, 30]},
        {"encoder": [5, 8], "decoder": [4, 14, 22]},
        {"encoder": [], "decoder": [8, 17, 24]}]
    assert depth.openba_stages(base=1) == [
        {"encoder": [3, 7], "decoder": [6, 10, 17, 19, 21, 29]},
        {"encoder": [4, 7], "decoder": [3, 13, 21]},
        {"encoder": [], "decoder": [7, 16, 23]}]


@pytest.mark.parametrize(("base", "encoder", "decoder"), [
    (0, [0, 1, 2, 3, 5, 7, 9, 11], [0, 1, 2, 3, 5, 6, 8, 9, 12, 13, 14, 15, 17, 19, 21, 23, 25, 26, 28, 29, 31, 32, 34, 35]),
    (1, [0, 1, 2, 4, 6, 8, 10, 11], [0, 1, 2, 4, 5, 7, 8, 11, 12, 13, 14, 16, 18, 20, 22, 24, 25, 27, 28, 30, 31, 33, 34, 35]),
])
def test_openba_stages_end_with_the_published_layers(base: int, encoder: list[int], decoder: list[int]) -> None:
    have = {"encoder": list(range(12)), "decoder": list(range(36))}
    for stage in depth.openba_stages(base=base):
        for name, drops in stage.items():
            have[name] = [have[name][place] for place in depth.kept(len(have[name]), drops)]
    assert have == {"encoder": encoder, "decoder": decoder}


def test_spaced_drops_are_apart_and_spare_the_ends() -> None:
    assert depth.spaced(12, 2) == [4, 8]
    for count in range(2, 60):
        for drop in range(1, count):
            drops = depth.spaced(count, drop)
            assert len(set(drops)) == drop and drops[0] > 0 and drops[-1] < count
            if 3 * drop < count:
                assert min(np.diff([-1, *drops, count])) >= 2
    with pytest.raises(ConfigError, match=r"cannot drop 4 of 4 layers"):
        depth.spaced(4, 4)


def _samples(seq2seq: bool = False) -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(0).integers(3, 48, (4, 20))
    return [{"input_ids": row[:10], "labels": row[10:]} if seq2seq else {"input_ids": row} for row in ids]


@pytest.mark.parametrize(("case", "stack"), [("llama", "layers"), ("gpt2", "layers"), ("t5", "decoder"), ("openba", "decoder")])
def test_a_layer_that_does_nothing_is_found(case: str, stack: str) -> None:
    model = tiny.make(case)
    family_layers = depth.layer_modules(model, depth.of(model.config.to_dict()), stack)
    with torch.no_grad():
        for name, parameter in family_layers[1].named_parameters():
            if name.split(".")[-2] in ("o_proj", "down_proj", "c_proj", "o", "wo", "fc_out"):
                parameter.zero_()
    samples = _samples(model.config.is_encoder_decoder)
    scores = depth.influence(model, samples)[stack]
    assert scores.argmin() == 1 and abs(scores[1]) < 1e-9
    alone = [depth.loss(model, samples, without={stack: [index]}) for index in range(len(family_layers))]
    assert depth.greedy(model, {stack: 1}, samples) == {stack: [int(np.argmin(alone))]}
    assert depth.by_influence(model, {stack: 1}, samples) == {stack: [1]}
    assert depth.loss(model, samples) == pytest.approx(depth.loss(model, samples, without={stack: [1]}), abs=1e-6)
    assert depth.loss(model, samples) != pytest.approx(depth.loss(model, samples, without={stack: [0]}), abs=1e-6)


def test_best_is_never_worse_than_spaced() -> None:
    model = tiny.make("llama")
    samples = _samples()
    chosen, figures = depth.choose("best", model.config.to_dict(), {"layers": 1}, model=model, samples=samples)
    assert depth.loss(model, samples, without=chosen) == min(figures["loss_by_rule"].values())
    assert figures["loss_by_rule"][figures["rule"]] <= figures["loss_by_rule"]["spaced"]


def test_a_shortlist_limits_what_greedy_tries() -> None:
    model = tiny.make("llama")
    samples = _samples()
    least = int(depth.influence(model, samples)["layers"].argmin())
    assert depth.greedy(model, {"layers": 1}, samples, shortlist=1) == {"layers": [least]}
    assert depth.greedy(model, {"layers": 2}, samples, shortlist=3) == depth.greedy(model, {"layers": 2}, samples)


def test_losses_do_not_depend_on_how_samples_are_stacked() -> None:
    model = tiny.make("gpt2")
    samples = [*_samples(), {"input_ids": np.arange(3, 12)}]
    alone = [(depth.loss(model, [sample]), len(sample["input_ids"]) - 1) for sample in samples]
    expected = sum(value * count for value, count in alone) / sum(count for _, count in alone)
    assert depth.loss(model, samples) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("case", ["llama", "llama-tied-biased", "qwen2", "glm4", "gpt2", "codegen", "opt", "bloom", "t5", "t5-own-head",
                                  "umt5", "openba"])
def test_read_layer_by_layer_the_rules_find_the_same(case: str, tmp_path: Path) -> None:
    model = tiny.save(case, tmp_path)
    samples = _samples(model.config.is_encoder_decoder)
    stream = depth.layered(tmp_path)
    last = depth.of(model.config.to_dict()).stacks[-1]
    for name, scores in depth.influence(model, samples).items():
        np.testing.assert_allclose(depth.influence(stream, samples)[name], scores, rtol=1e-4, atol=1e-6)
    for without in ({}, {last.name: [0]}, {last.name: [1, 2]}):
        assert depth.loss(stream, samples, without=without) == pytest.approx(depth.loss(model, samples, without=without), rel=1e-5)
    drops = {"encoder": 1, "decoder": 2} if model.config.is_encoder_decoder else {last.name: 2}
    assert depth.greedy(stream, drops, samples) == depth.greedy(model, drops, samples)
    here = [name for name, parameter in stream.model.named_parameters() if not parameter.is_meta and ".0." in name]
    assert not here  # every layer was given back


@pytest.mark.parametrize("rule", ["block-influence", "greedy", "best"])
def test_a_model_that_does_not_fit_is_chosen_from_layer_by_layer(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penjing.prune import layerwise, request

    tiny.save("llama", tmp_path)
    asked = request.Request(layers=1, depth_rule=rule, device="cpu")
    with open_checkpoint(tmp_path) as source:
        whole = request.make_plan(asked, source, _samples())
        monkeypatch.setattr(layerwise, "RESIDENT_BYTES", 0)
        assert type(request.placed(asked, tmp_path)).__name__ == "Layered"
        in_layers = request.make_plan(asked, source, _samples(), work=tmp_path / "work")
    assert whole[0].layers == in_layers[0].layers
    assert in_layers[1].get("loss_by_rule", {}) == pytest.approx(whole[1].get("loss_by_rule", {}), rel=1e-5)
    assert not list((tmp_path / "work").iterdir()) if (tmp_path / "work").exists() else True


def test_a_calibration_that_is_needed_anyway_ranks_the_layers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penjing.prune import request

    tiny.save("openba", tmp_path)
    asked = request.Request(layers={"decoder": 2}, depth_rule="block-influence", device="cpu")
    with open_checkpoint(tmp_path) as source:
        alone, _ = request.make_plan(asked, source, _samples(True))
        monkeypatch.delattr(request, "placed")  # no second look at the model
        with_width, _ = request.make_plan(asked.model_copy(update={"ffn": 16, "importance": "output-energy"}), source, _samples(True))
    assert with_width.layers == alone.layers
