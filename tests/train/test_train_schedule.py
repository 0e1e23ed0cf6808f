"""Schedules are functions of tokens, whatever the batch."""

from __future__ import annotations

import pytest

from penjing.train.config import TrainConfig
from penjing.train.schedule import learning_rate


def config(**more: object) -> TrainConfig:
    return TrainConfig(tokens=1000, lr=1.0, **more)


def test_warmup_rises_from_zero_to_the_peak() -> None:
    shape = config(warmup_tokens=100)
    assert learning_rate(shape, 0) == 0.0
    assert learning_rate(shape, 50) == pytest.approx(0.5)
    assert learning_rate(shape, 100) == pytest.approx(1.0)


def test_cosine_ends_at_its_final_share() -> None:
    shape = config(warmup_tokens=0, final_lr_ratio=0.1)
    assert learning_rate(shape, 500) == pytest.approx(0.55)
    assert learning_rate(shape, 1000) == pytest.approx(0.1)


def test_wsd_is_flat_then_falls() -> None:
    shape = config(schedule="wsd", warmup_tokens=0, decay_tokens=200, final_lr_ratio=0.0)
    assert learning_rate(shape, 799) == 1.0
    assert learning_rate(shape, 850) == pytest.approx(0.5)
    assert learning_rate(shape, 1000) == pytest.approx(0.0)


def test_infinite_cools_down_holds_and_decays() -> None:
    shape = config(schedule="infinite", warmup_tokens=0, cooldown_tokens=400, decay_tokens=100, constant_lr_ratio=0.5,
                   final_lr_ratio=0.1)
    assert learning_rate(shape, 0) == pytest.approx(1.0)
    assert learning_rate(shape, 400) == learning_rate(shape, 899) == 0.5
    assert learning_rate(shape, 1000) == pytest.approx(0.1)


def test_one_schedule_may_span_runs() -> None:
    whole = TrainConfig(tokens=2000, lr=1.0)
    second = TrainConfig(tokens=1000, lr=1.0, schedule_tokens=2000, schedule_offset=1000)
    assert learning_rate(second, 300) == learning_rate(whole, 1300)


def test_rewarming_starts_where_the_last_run_ended() -> None:
    shape = config(warmup_tokens=100, rewarm_from_ratio=0.2)
    assert learning_rate(shape, 0) == pytest.approx(0.2)
    assert learning_rate(shape, 50) == pytest.approx(0.6)


def test_only_long_runs_on_a_gpu_are_compiled_unasked() -> None:
    config = TrainConfig(tokens=20_000_000)
    assert config.settled("cuda", 100_000_000).compile is True
    assert config.settled("cuda", 1_000_000).compile is False
    assert config.settled("cpu", 100_000_000).compile is False
    assert TrainConfig(tokens=1, compile=True).settled("cpu", 1).compile is True
    assert TrainConfig(tokens=10**12, compile=False).settled("cuda", 10**9).compile is False
