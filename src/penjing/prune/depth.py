"""Which layers go: spaced over the middle as OpenBA-V2 did it, by block influence, greedily by loss, or as you list
them.

The rules that look at data take a transformers model, or a model that is read layer by layer (`layered`): then one layer
and one batch are in memory, and the streams that are compared lie on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import ConfigError, fault
from penjing.models.family import Family, of

LOGIT_BYTES = 256 << 20
"""Logits of one batch of a model that is read layer by layer."""
RULES = ("spaced", "block-influence", "greedy", "best", "list")
OPENBA_V2: tuple[dict[str, list[int]], ...] = (
    {"encoder": [4, 8], "decoder": [7, 11, 18, 20, 22, 30]},
    {"encoder": [6, 10], "decoder": [4, 16, 27]},
    {"encoder": [], "decoder": [10, 24, 33]},
)
"""Layers dropped in the three depth stages of OpenBA-V2 (its README), numbered as in the uncut 12 + 36 layers.

The numbering base is not stated there: the tool counts from 0, but the union is symmetric (three layers kept at each
decoder end) only when read from 1.
"""


def spaced(count: int, drop: int) -> list[int]:
    """`drop` of `count` layers, evenly apart, never the first, the last only when nearly all go.

    OpenBA-V2 publishes its sets, not a formula; multiples of count / (drop + 1) give its [4, 8] of 12.
    """
    _check_drop(count, drop, "layers")
    return [index * count // (drop + 1) for index in range(1, drop + 1)]


def renumber(drops: Sequence[int], kept: Sequence[int], *, base: int = 0) -> list[int]:
    """Places in the present model of layers named by their numbers in the original one.

    `kept` are the original numbers (from 0) of the layers the present model has. ConfigError for one that is gone or
    never was.
    """
    places = {original: place for place, original in enumerate(kept)}
    found = []
    for number in drops:
        if number - base not in places:
            raise ConfigError(
                fault(
                    f"layer {number} of the original model is not in this one",
                    found=f"numbering from {base}",
                    expected=f"one of {', '.join(str(item + base) for item in kept)}",
                )
            )
        found.append(places[number - base])
    return found


def kept(count: int, drops: Sequence[int]) -> list[int]:
    """The layers that stay when `drops` go; ConfigError for a number that is not there, or twice."""
    for number in drops:
        if not 0 <= number < count:
            raise ConfigError(fault("there is no such layer to drop", found=number, expected=f"0 to {count - 1}"))
    if len(set(drops)) != len(drops):
        raise ConfigError(fault("a layer is dropped twice", found=list(drops)))
    _check_drop(count, len(drops), "layers")
    gone = set(drops)
    return [index for index in range(count) if index not in gone]


def openba_stages(*, base: int = 0) -> list[dict[str, list[int]]]:
    """The drops of OpenBA-V2's three depth stages, each relative to the model the stage starts from."""
    have = {"encoder": list(range(12)), "decoder": list(range(36))}
    stages = []
    for drops in OPENBA_V2:
        stage = {}
        for stack, numbers in drops.items():
            stage[stack] = renumber(numbers, have[stack], base=base)
            have[stack] = [have[stack][place] for place in kept(len(have[stack]), stage[stack])]
        stages.append(stage)
    return stages


def influence(model: Any, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Block influence of each layer by stack: 1 - mean cosine of what enters and what leaves (ShortGPT, section 3.1).

    `model` is a transformers model, or a `layered` one; every token of every sample counts once.
    """
    import torch

    replay = _replay(model, samples)
    if replay is not None:
        return dict(replay.influence())
    family = of(model.config.to_dict())
    sums = {stack.name: np.zeros(len(layer_modules(model, family, stack.name))) for stack in family.stacks}
    counts = {name: np.zeros_like(values) for name, values in sums.items()}
    hooks = []
    for stack in family.stacks:
        for index, layer in enumerate(layer_modules(model, family, stack.name)):

            def watch(
                module: Any, args: Any, kwargs: Any, output: Any, name: str = stack.name, index: int = index
            ) -> None:
                entered, left = _entering(args, kwargs).double(), _leaving(output).double()
                cosine = torch.nn.functional.cosine_similarity(entered, left, dim=-1)
                sums[name][index] += float(cosine.sum())
                counts[name][index] += cosine.numel()

            hooks.append(layer.register_forward_hook(watch, with_kwargs=True))
    try:
        loss(model, samples)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: 1 - values / np.maximum(counts[name], 1) for name, values in sums.items()}


def loss(
    model: Any, samples: Sequence[Mapping[str, np.ndarray]], *, without: Mapping[str, Sequence[int]] | None = None
) -> float:
    """Mean loss in nats per predicted token, with the layers in `without` (by stack) passed over."""
    import torch

    _check_samples(samples)
    replay = _replay(model, samples)
    if replay is not None:
        return float(replay.losses(without or {})[None])
    family = of(model.config.to_dict())
    hooks = []
    for name, indices in (without or {}).items():
        layers = layer_modules(model, family, name)
        hooks += [layers[index].register_forward_hook(pass_over, with_kwargs=True) for index in indices]
    total, count = 0.0, 0
    try:
        with torch.inference_mode():
            for fields in _tensors(samples):
                fields = {key: value.to(model.device) for key, value in fields.items()}
                labels = fields["labels"]
                predicted = int((labels if family.seq2seq else labels[:, 1:]).ne(-100).sum())
                total += float(model(**fields, use_cache=False).loss) * predicted
                count += predicted
    finally:
        for hook in hooks:
            hook.remove()
    return total / max(count, 1)


def by_influence(
    model: Any,
    drops: Mapping[str, int],
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    influences: Mapping[str, np.ndarray] | None = None,
) -> dict[str, list[int]]:
    """The layers of least block influence, by stack; `influences` are what a calibration has measured of it already."""
    scores = influence(model, samples) if influences is None else influences
    return {name: sorted(np.argsort(scores[name], kind="stable")[:number].tolist()) for name, number in drops.items()}


def greedy(
    model: Any,
    drops: Mapping[str, int],
    samples: Sequence[Mapping[str, np.ndarray]],
    note: Callable[[str], None] = lambda text: None,
    *,
    shortlist: int | None = None,
    influences: Mapping[str, np.ndarray] | None = None,
) -> dict[str, list[int]]:
    """Drop one layer at a time, always the one whose loss rises least; stacks take turns by what hurts least.

    With a `shortlist` only that many layers of each stack, those of least block influence, are tried.
    """
    replay = _replay(model, samples)
    config = _config(model) if replay is None else replay.model.config
    family = of(config)
    gone: dict[str, list[int]] = {name: [] for name in drops}
    counts = {stack.name: family.sizes(config)[stack.size] for stack in family.stacks}
    tryable = {name: list(range(count)) for name, count in counts.items()}
    if shortlist is not None:
        scores = influences or (influence(model, samples) if replay is None else replay.influence())
        for name, number in drops.items():
            tryable[name] = sorted(np.argsort(scores[name], kind="stable")[: max(shortlist, number)].tolist())
    while any(len(gone[name]) < number for name, number in drops.items()):
        places = [(name, index) for name, number in drops.items() if len(gone[name]) < number
                  for index in tryable[name] if index not in gone[name]]
        if replay is None:
            losses = {(name, index): loss(model, samples, without={**gone, name: [*gone[name], index]}) for name, index in places}
        else:
            losses = replay.losses(gone, places)
        value, name, index = min((losses[name, index], name, index) for name, index in places)
        gone[name].append(index)
        note(f"without layer {index} of {name}: loss {value:.4f}")
    return {name: sorted(indices) for name, indices in gone.items()}


def choose(
    rule: str,
    config: Mapping[str, Any],
    drops: Mapping[str, int],
    *,
    model: Any = None,
    samples: Sequence[Mapping[str, np.ndarray]] = (),
    note: Callable[[str], None] = lambda text: None,
    shortlist: int | None = None,
    work: Path | None = None,
    influences: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The layers to drop by stack, and what was measured on the way.

    `best` measures the sets of the other rules and takes the one of least loss, so it is never worse than spaced on the
    samples. Streams of a `layered` model wait in `work`.
    """
    family = of(config)
    sizes = family.sizes(config)
    for name, number in drops.items():
        _check_drop(sizes[family.stack(name).size], number, f"layers of {name}")
    even = {name: spaced(sizes[family.stack(name).size], number) for name, number in drops.items()}
    if rule == "spaced":
        return even, {}
    model = _replay(model, samples, work) or model
    if rule == "block-influence":
        return by_influence(model, drops, samples, influences=influences), {}
    if rule == "greedy":
        return greedy(model, drops, samples, note, shortlist=shortlist, influences=influences), {}
    if rule != "best":
        raise ConfigError(fault(f"unknown depth rule '{rule}'", expected=f"one of {', '.join(RULES)}"))
    sets = {
        "spaced": even,
        "block-influence": by_influence(model, drops, samples, influences=influences),
        "greedy": greedy(model, drops, samples, note, shortlist=shortlist, influences=influences),
    }
    losses = {name: loss(model, samples, without=chosen) for name, chosen in sets.items()}
    winner = min(losses, key=lambda name: losses[name])
    return sets[winner], {"loss_by_rule": losses, "rule": winner}


def layered(path: str | Path) -> Any:
    """A model directory for these rules that is read layer by layer and never whole."""
    from penjing.prune.layerwise import Layered

    return Layered(path, streamed=True)


def layer_modules(model: Any, family: Family, stack: str) -> list[Any]:
    """The layers of a stack in a transformers model, in order."""
    prefix = family.stack(stack).prefix.split("{i}")[0].rstrip(".")
    return list(model.get_submodule(prefix))


def _config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    return config


def _replay(model: Any, samples: Sequence[Mapping[str, np.ndarray]], work: Path | None = None) -> Any:
    """Passes over a layered model, in batches small enough that their logits take at most `LOGIT_BYTES`; None for one in memory."""
    if model is None or type(model).__name__ not in ("Layered", "Replay"):
        return None
    if type(model).__name__ == "Replay":
        return model
    from penjing.prune.replay import Replay

    _check_samples(samples)
    longest = max(len(sample.get("labels", sample["input_ids"])) for sample in samples)
    rows = LOGIT_BYTES // (4 * longest * of(model.config).sizes(model.config)["vocab"])
    return Replay(model, _tensors(samples, rows=min(8, max(1, rows))), work)


def _check_samples(samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    if not samples:
        raise ConfigError(
            fault(
                "this depth rule measures the model and was given nothing to measure it on",
                fix="give the stage a 'tokens' or 'corpus' input, or use depth_rule: spaced",
            )
        )


def _tensors(samples: Sequence[Mapping[str, np.ndarray]], rows: int = 8) -> list[dict[str, Any]]:
    """Model inputs of up to `rows` samples each, with labels."""
    import torch

    made = []
    for batch in _batches(samples, rows):
        fields = {key: torch.from_numpy(value).long() for key, value in batch.items()}
        made.append({**fields, "labels": fields.get("labels", fields["input_ids"])})
    return made


def _batches(samples: Sequence[Mapping[str, np.ndarray]], rows: int = 8) -> Iterator[dict[str, np.ndarray]]:
    """Neighbouring samples of equal lengths, stacked, at most `rows` at a time."""
    start = 0
    while start < len(samples):
        shapes = {key: np.shape(value) for key, value in samples[start].items()}
        stop = start + 1
        while stop < min(len(samples), start + rows) and {key: np.shape(value) for key, value in samples[stop].items()} == shapes:
            stop += 1
        yield {key: np.stack([np.asarray(sample[key]) for sample in samples[start:stop]]) for key in shapes}
        start = stop


def _check_drop(count: int, drop: int, what: str) -> None:
    if drop < 0 or drop >= count:
        raise ConfigError(fault(f"cannot drop {drop} of {count} {what}", expected=f"0 to {count - 1}"))


def _entering(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _leaving(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def pass_over(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    """What a layer that is not there gives: its input, with whatever else the layer hands on (T5's positions) left
    alone.
    """
    entered = _entering(args, kwargs)
    return (entered, *output[1:]) if isinstance(output, tuple) else entered
