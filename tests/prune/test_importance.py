"""Metrics that look at data find what is dead, count grouped heads as groups, and measure a model once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.errors import ConfigError
from penjing.models import tiny
from penjing.models.checkpoint import open_checkpoint
from penjing.prune import importance, width
from penjing.prune.width import Context
from tests.prune.test_calibrate import samples

METRICS = ("activation", "output-energy", "taylor")


@pytest.mark.parametrize("name", METRICS)
def test_places_that_do_nothing_go_first(name: str, tmp_path: Path) -> None:
    model = tiny.make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[[3, 17]] = 0
            layer.self_attn.v_proj.weight[:8] = 0  # the first of two groups
    model.save_pretrained(tmp_path)
    sizes = {"ffn": 22, "kv_heads": 1, "heads": 2}
    with open_checkpoint(tmp_path) as source:
        context = Context(source, samples=samples())
        units = width.shrinking_units(source.config, sizes)
        keep = width.select(source.config, sizes, width.metric(name)(context, units))
    for layer in range(3):
        assert set(range(24)) - set(keep[f"layers.{layer}.ffn"].tolist()) == {3, 17}
        assert keep[f"layers.{layer}.kv_head"].tolist() == [1]
        assert keep[f"layers.{layer}.head"].tolist() == [2, 3]


def test_a_place_of_the_stream_that_nobody_reads_scores_zero(tmp_path: Path) -> None:
    model = tiny.make("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[5] = 0
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as source:
        scores = importance.output_energy(Context(source, samples=samples()), {"hidden": 32})["hidden"]
    assert scores.argmin() == 5 and scores[5] == 0 and np.sort(scores)[1] > 0


def test_a_model_is_measured_once(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    (tmp_path / "work").mkdir()
    with open_checkpoint(tmp_path / "model") as source:
        context = Context(source, samples=samples(), work=tmp_path / "work")
        first = importance.calibration_of(context)
        assert (tmp_path / "work" / "scores.safetensors").is_file()
        assert importance.calibration_of(Context(source, samples=samples())) is first
        without_text = importance.calibration_of(Context(source, work=tmp_path / "work"))
        assert np.array_equal(without_text.arrays["hidden.covariance"], first.arrays["hidden.covariance"])
        other = importance.calibration_of(Context(source, samples=samples(seed=1)))
        assert not np.array_equal(other.arrays["hidden.covariance"], first.arrays["hidden.covariance"])


def test_a_metric_without_data_says_what_it_needs(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    with open_checkpoint(tmp_path) as source, pytest.raises(ConfigError, match="give the stage a 'tokens' or 'corpus' input"):
        importance.activation(Context(source), {"hidden": 32})


def test_metrics_are_found_by_name() -> None:
    assert {"activation", "output-energy", "taylor"} <= set(width.data_metrics())


def test_a_kept_calibration_serves_only_the_text_it_was_measured_on(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        one, other = samples(), samples(seed=5)
        first = importance.calibration_of(Context(source, samples=one, work=tmp_path))
        assert np.array_equal(importance.calibration_of(Context(source, work=tmp_path)).arrays["hidden.covariance"],
                              first.arrays["hidden.covariance"])
        second = importance.calibration_of(Context(source, samples=other, work=tmp_path))
        assert not np.array_equal(second.arrays["hidden.covariance"], first.arrays["hidden.covariance"])
