"""The proof of a family's table: tiny random models are cut along every axis and must compute what masking computes.

Three things are compared in float32 on random ids: the model with all units shuffled (every dimension must have the
right label), the model cut along one axis against the uncut one with the same places set to zero, and the model without
layers against the one whose layers are passed over. A wrong or missing label, a forgotten config key or a shape that
does not load shows here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.config import generator
from penjing.errors import PenjingError
from penjing.models import axes, cost
from penjing.models.checkpoint import load_model, open_checkpoint
from penjing.models.family import Family, of
from penjing.prune import cut, depth, plan, rules, width

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One property that was tried."""

    name: str
    passed: bool
    detail: str
    """The largest difference found, or what went wrong."""


def verify(model: Any, *, seed: int = 0) -> list[Check]:
    """Try every axis of a small transformers model with random weights; its class must have a table."""
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="penjing-verify-") as folder:
        source = Path(folder) / "source"
        model = model.float().eval()
        model.save_pretrained(source)
        checks.append(_attempt("table is the state dict", lambda: _table(source, model)))
        if not checks[0].passed:
            return checks
        config = open_checkpoint(source).config
        family = of(config)
        sizes = family.sizes(config)
        checks.append(
            _attempt("shuffling every unit changes nothing", lambda: _shuffled(source, model, Path(folder) / "s", seed))
        )
        if family.kept_heads is not None:
            checks.append(
                _attempt(
                    "shuffling heads changes nothing for single tokens",
                    lambda: _shuffled(source, model, Path(folder) / "h", seed, single=True),
                )
            )
        checks.append(_attempt("keeping everything is bit-identical", lambda: _identical(source, Path(folder) / "i")))
        for name, target in _smaller(config, family).items():
            masked = family.norm == "rms" or "hidden" not in target
            label = f"cutting {name} equals masking" if masked else f"cutting {name} loads"
            out = Path(folder) / name
            checks.append(_attempt(label, lambda t=target, o=out, m=masked: _cut(source, model, o, t, m, seed)))
        if family.norm == "layer":
            once = {tuple(sorted(target.items())): (name, target) for name, target in _smaller(config, family).items()}
            for name, target in once.values():
                if "hidden" in target and 2 * target["hidden"] == sizes["hidden"]:
                    out = Path(folder) / f"{name}-doubled"
                    checks.append(_attempt(f"cutting {name} of a stream that holds everything twice changes nothing",
                                           lambda t=target, o=out: _halved(model, o, t, seed)))
        if family.no_depth(config) is None:
            for stack in family.stacks:
                if sizes[stack.size] > 1:
                    for gone in (0, sizes[stack.size] - 1):
                        out = Path(folder) / f"{stack.name}-{gone}"
                        checks.append(
                            _attempt(
                                f"dropping layer {gone} of {stack.name} equals passing over it",
                                lambda s=stack.name, g=gone, o=out: _dropped(source, model, o, s, g),
                            )
                        )
        everything = Path(folder) / "all"
        checks.append(_attempt("cut along all axes, it loads and trains", lambda: _trains(source, everything, seed)))
    return checks


def difference(one: Any, two: Any, ids: torch.Tensor, *, kept: np.ndarray | None = None) -> float:
    """Largest difference of two models' logits; with `kept`, the second has only those tokens and reads their new ids."""
    first, second = _logits(one, ids), None
    if kept is None:
        second = _logits(two, ids)
    else:
        new_ids = torch.full((int(kept.max()) + 1,), -1)
        new_ids[torch.from_numpy(kept)] = torch.arange(len(kept))
        second, first = _logits(two, new_ids[ids]), first[..., torch.from_numpy(kept)]
    return float((first - second).abs().max() / first.abs().max().clamp(min=1.0))


def masked_copy(model: Any, keep: Mapping[str, np.ndarray]) -> Any:
    """The model with every weight of the places that `keep` leaves out set to zero."""
    import copy

    masked = copy.deepcopy(model)
    config = _config(model)
    family = of(config)
    sizes = plan.unit_sizes(config)
    state = dict(masked.named_parameters(remove_duplicate=False))
    for name, tensor in family.tensors(config).items():
        for dim, label in enumerate(tensor.axes):
            index = axes.gather(label, sizes, keep)
            if index is not None:
                gone = np.setdiff1d(np.arange(tensor.shape[dim]), index)
                with torch.no_grad():
                    state[name].index_fill_(dim, torch.from_numpy(gone), 0.0)
    return masked


def _attempt(name: str, check: Any) -> Check:
    try:
        found = check()
    except (PenjingError, ValueError, RuntimeError, KeyError, IndexError, AttributeError, TypeError) as error:
        return Check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    if isinstance(found, float):
        return Check(name, found <= TOLERANCE, f"largest difference {found:.1e}")
    return Check(name, found == "", found)


def _table(source: Path, model: Any) -> str:
    checkpoint = open_checkpoint(source)
    family = of(checkpoint.config)
    files = family.match(checkpoint.config, checkpoint.names, where="state dict")
    for name, tensor in family.tensors(checkpoint.config).items():
        if checkpoint.shape(files[name]) != tensor.shape:
            return f"'{name}' is {list(checkpoint.shape(files[name]))}, the table says {list(tensor.shape)}"
    total = sum(parameter.numel() for parameter in model.parameters())
    counted = cost.count_parameters(checkpoint.config)
    return "" if total == counted else f"{total} parameters, the table counts {counted}"


def _shuffled(source: Path, model: Any, out: Path, seed: int, *, single: bool = False) -> float:
    config = open_checkpoint(source).config
    family = of(config)
    sizes = family.sizes(config)
    order: dict[str, np.ndarray] = {}
    for unit, size in family.units(config).items():
        last = unit.rsplit(".", 1)[-1]
        if last in ("vocab", "position", "bucket", "head_dim", "kv_head") or (
            last == "head" and family.kept_heads is not None and not single
        ):
            continue
        if last == "head" and "kv_heads" in sizes:
            groups = generator(seed, "verify", unit).permutation(sizes["kv_heads"])
            per_group = sizes["heads"] // sizes["kv_heads"]
            order[unit] = (groups[:, None] * per_group + np.arange(per_group)).reshape(-1)
            order[unit.removesuffix("head") + "kv_head"] = groups
        else:
            order[unit] = generator(seed, "verify", unit).permutation(size)
    keep = {unit: places for unit, places in order.items() if unit in family.units(config)}
    shuffled = plan.PruningPlan(
        {}, config, config, {stack.name: tuple(range(sizes[stack.size])) for stack in family.stacks}, keep
    )
    with open_checkpoint(source) as checkpoint:
        cut.apply(shuffled, checkpoint, out)
    ids = _ids(model, seed)
    return difference(model, load_model(out), ids[:, :1] if single else ids)


def _identical(source: Path, out: Path) -> str:
    with open_checkpoint(source) as checkpoint:
        cut.apply(plan.build(checkpoint.config), checkpoint, out)
        result = open_checkpoint(out)
        for name in checkpoint.names:
            if name in result.names and not np.array_equal(checkpoint.read_bits(name), result.read_bits(name)):
                return f"'{name}' differs"
        return "" if result.config == checkpoint.config else "config.json differs"


def _smaller(config: Mapping[str, Any], family: Family) -> dict[str, dict[str, int]]:
    """Target sizes to try: each axis alone where the architecture can cut it alone, and tokens."""
    old = family.sizes(config)
    found: dict[str, dict[str, int]] = {"vocab": {"vocab": old["vocab"] - old["vocab"] // 4}}
    for name in ("ffn", "heads", "kv_heads", "hidden"):
        if name not in old or old[name] < 2:
            continue
        step = family.divisors.get(name, 1)
        value = max(step, old[name] // 2 // step * step)
        target = rules.complete(config, {name: value})
        if name == "heads" and "kv_heads" in old:
            target = {"heads": old["heads"] // old["kv_heads"] // 2 * old["kv_heads"], "kv_heads": old["kv_heads"]}
        if target.get("heads") != 0 and not rules.problems(config, target):
            found[name] = target
    return found


def _cut(source: Path, model: Any, out: Path, target: Mapping[str, int], masked: bool, seed: int) -> float | str:
    with open_checkpoint(source) as checkpoint:
        context = width.Context(checkpoint, seed=seed)
        config = checkpoint.config
        keep = width.select(config, target, width.random(context, width.shrinking_units(config, target)))
        if "vocab" in keep:
            keep["vocab"] = np.union1d(keep["vocab"][3:], np.arange(3))
        pruning = plan.build(config, keep=keep)
        pruning = plan.corrected(pruning, norm_scale="mask" if masked and "hidden" in keep else "none")
        cut.apply(pruning, checkpoint, out)
    result = load_model(out)
    if not masked:
        logits = _logits(result, _ids(model, seed))
        return "" if bool(torch.isfinite(logits).all()) else "logits are not finite"
    if "vocab" in keep:
        ids = torch.from_numpy(keep["vocab"])[_ids(model, seed) % len(keep["vocab"])]
        return difference(model, result, ids, kept=keep["vocab"])
    reference = masked_copy(model, keep)
    return difference(reference, result, _ids(model, seed))


def _halved(model: Any, out: Path, target: Mapping[str, int], seed: int) -> float:
    """LayerNorm's statistics are the same over a stream and over half of one that holds everything twice; so there a cut of
    hidden can be compared, with other units set to zero.
    """
    config = _config(model)
    family = of(config)
    model.save_pretrained(out / "model")
    with open_checkpoint(out / "model") as checkpoint:
        context = width.Context(checkpoint, seed=seed)
        keep = width.select(config, target, width.random(context, width.shrinking_units(config, target)))
    twice = masked_copy(model, {unit: places for unit, places in keep.items() if unit != "hidden"})
    kept = torch.from_numpy(keep["hidden"])
    gone = torch.from_numpy(np.setdiff1d(np.arange(family.sizes(config)["hidden"]), keep["hidden"]))
    state = dict(twice.named_parameters(remove_duplicate=False))
    table = family.tensors(config)
    last = next(name for name in reversed(table) if table[name].kind == "norm")
    for name, tensor in table.items():
        for dim, label in enumerate(tensor.axes):
            if label != "hidden":
                continue
            reads = tensor.kind == "linear" and dim == (0 if type(twice.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D" else 1)
            with torch.no_grad():
                if reads or (family.tied(config) and name in (last, last.removesuffix("weight") + "bias")):
                    state[name].index_fill_(dim, gone, 0.0)  # a head that is the embedding reads what the last norm lets through
                else:
                    state[name].index_copy_(dim, gone, state[name].index_select(dim, kept))
    twice.save_pretrained(out / "twice")
    with open_checkpoint(out / "twice") as checkpoint:
        cut.apply(plan.build(checkpoint.config, keep=keep), checkpoint, out / "cut")
    return difference(twice, load_model(out / "cut"), _ids(model, seed))


def _dropped(source: Path, model: Any, out: Path, stack: str, gone: int) -> float:
    with open_checkpoint(source) as checkpoint:
        family = of(checkpoint.config)
        count = family.sizes(checkpoint.config)[family.stack(stack).size]
        cut.apply(plan.build(checkpoint.config, layers={stack: depth.kept(count, [gone])}), checkpoint, out)
    layer = depth.layer_modules(model, family, stack)[gone]
    hook = layer.register_forward_hook(depth.pass_over, with_kwargs=True)
    try:
        return difference(model, load_model(out), _ids(model, 0))
    finally:
        hook.remove()


def _trains(source: Path, out: Path, seed: int) -> str:
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        family = of(config)
        old = family.sizes(config)
        target: dict[str, int] = {}
        for sizes in _smaller(config, family).values():
            target = {**sizes, **target}
        target.pop("vocab", None)
        target = {} if rules.problems(config, target) else target
        layers = {
            stack.name: depth.kept(old[stack.size], [0] if old[stack.size] > 1 and family.no_depth(config) is None else [])
            for stack in family.stacks
        }
        keep = width.select(
            config, target, width.random(width.Context(checkpoint, seed=seed), width.shrinking_units(config, target))
        )
        pruning = plan.corrected(plan.build(config, layers=layers, keep=keep))
        cut.apply(pruning, checkpoint, out)
        predicted = cost.count_parameters(pruning.target_config)
    model = load_model(out)
    counted = sum(parameter.numel() for parameter in model.parameters())
    if counted != predicted:
        return f"{counted} parameters, the plan said {predicted}"
    ids = _ids(model, seed)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if any(parameter.grad is None for parameter in model.parameters()):
            return "a weight gets no gradient"
        optimizer.step()
    model.eval()
    # T5 in transformers 5.24 sizes its cache by the encoder's layers, so a deeper decoder cannot use it.
    cached = family.model_type == "openba" or not family.seq2seq
    model.generate(input_ids=ids[:, :4], max_new_tokens=2, do_sample=False, pad_token_id=0, use_cache=cached)
    return "" if np.isfinite(losses).all() and losses[1] != losses[0] else f"loss {losses[0]} then {losses[1]}"


def _ids(model: Any, seed: int) -> torch.Tensor:
    vocab = of(_config(model)).sizes(_config(model))["vocab"]
    return torch.from_numpy(generator(seed, "verify", "ids").integers(3, vocab, (2, 12)))


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
        result = model(input_ids=ids, **more, use_cache=False).logits
    assert isinstance(result, torch.Tensor)
    return result.double()


def _config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    family = of(config)
    names = [name for name, value in model.state_dict().items() if not (name == "lm_head.weight" and _is_tied(model, value))]
    state = model.state_dict()
    return family.settle(config, names, lambda name: tuple(state[name].shape))


def _is_tied(model: Any, head: torch.Tensor) -> bool:
    return bool(head.data_ptr() == model.get_input_embeddings().weight.data_ptr())
