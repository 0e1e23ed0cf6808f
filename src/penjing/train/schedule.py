"""Learning-rate schedules as pure functions of tokens seen.

The rate belongs to a number of tokens, not to a step, so a changed batch size or layout leaves the curve where it was.
"""

from __future__ import annotations

import math

from penjing.train.config import TrainConfig


def learning_rate(config: TrainConfig, tokens: int) -> float:
    """The rate of the step that starts after `tokens` tokens of this run.

    infinite: Ibrahim et al. 2024 (arXiv 2403.08763), section 7. wsd: Hu et al. 2024 (arXiv 2404.06395), decay 1 - sqrt as in
    Hägele et al. 2024 (arXiv 2405.18392).
    """
    total = config.schedule_tokens or config.tokens
    seen = config.schedule_offset + tokens
    warmup = _or_share(config.warmup_tokens, total, 0.01)
    if seen < warmup:
        start = config.rewarm_from_ratio
        return config.lr * (start + (1 - start) * seen / warmup)
    shape = {"cosine": _cosine, "wsd": _wsd, "infinite": _infinite, "constant": _constant}[config.schedule]
    return config.lr * shape(config, seen, warmup, total)


def _cosine(config: TrainConfig, seen: int, warmup: int, total: int) -> float:
    return _half_cosine(1.0, config.final_lr_ratio, (seen - warmup) / max(1, total - warmup))


def _constant(config: TrainConfig, seen: int, warmup: int, total: int) -> float:
    return 1.0


def _wsd(config: TrainConfig, seen: int, warmup: int, total: int) -> float:
    decay = _or_share(config.decay_tokens, total, 0.1)
    progress = (seen - (total - decay)) / max(1, decay)
    if progress <= 0 or decay == 0:
        return 1.0
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 - math.sqrt(min(1.0, progress)))


def _infinite(config: TrainConfig, seen: int, warmup: int, total: int) -> float:
    cooldown = _or_share(config.cooldown_tokens, total, 0.4)
    decay = _or_share(config.decay_tokens, total, 0.1)
    if seen < warmup + cooldown:
        return _half_cosine(1.0, config.constant_lr_ratio, (seen - warmup) / cooldown)
    progress = (seen - (total - decay)) / max(1, decay)
    if progress <= 0 or decay == 0:
        return config.constant_lr_ratio
    final = max(config.final_lr_ratio, 1e-6)
    return config.constant_lr_ratio * (final / config.constant_lr_ratio) ** min(1.0, progress)


def _half_cosine(high: float, low: float, progress: float) -> float:
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def _or_share(value: int | None, total: int, share: float) -> int:
    return round(total * share) if value is None else value
