"""Plain Hugging Face checkpoints out of a run: at its end, at chosen steps, and from a saved state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from penjing.errors import InputError, fault
from penjing.files import read_json
from penjing.train import distributed, shards, state
from penjing.train.distributed import World


def export(trained: nn.Module | None, out: Path, *, source: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """A plain checkpoint of `trained`, or of `source` with `weights` in the place of its own; tokenizer and code from `source`."""
    from penjing.models.checkpoint import load_model, save_model
    from penjing.train.outline import outline

    if weights is not None:
        found = outline(source)
        if found is None:
            trained = load_model(source, dtype="float32")
            _fill(trained, weights)
        else:  # nothing is held twice
            trained, unread = found
            unread.put(trained, weights)
            unread.fill(trained, torch.device("cpu"))
            unread.close()
    assert trained is not None
    used = trained.config.use_cache  # type: ignore[union-attr]
    trained.config.use_cache = bool(read_json(source / "config.json").get("use_cache", True))  # type: ignore[union-attr]
    save_model(trained, out, tokenizer_from=source)
    trained.config.use_cache = used  # type: ignore[union-attr]


def gather(models: Mapping[int, nn.Module], world: World) -> dict[str, Tensor]:
    """Every weight of all stages, whole, on the main process; the first of each stage gets its own. All must call it."""
    first_of_stage = world.rank % (world.size // world.parallel.pipeline) == 0
    found: dict[str, Tensor] = {}
    for one in models.values():
        for name, parameter in one.named_parameters():
            tensor = distributed.whole(parameter)
            if first_of_stage:
                found[name] = tensor
    if world.parallel.pipeline == 1:
        return found
    mine = {name: (list(tensor.shape), str(tensor.dtype)) for name, tensor in found.items()} if first_of_stage else {}
    held: list[Any] = [None] * world.size
    dist.all_gather_object(held, mine, group=world.save_group)
    for rank, listed in enumerate(held):
        for name, (shape, kind) in sorted(listed.items()):
            if rank == 0 or world.rank not in (0, rank):
                continue
            if world.rank == rank:
                dist.send(found[name].contiguous(), dst=0, group=world.save_group)
            else:
                found[name] = torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch.")))
                dist.recv(found[name], src=rank, group=world.save_group)
    return found


def export_state(folder: Path, out: Path, *, source: Path, step: int | None = None) -> int:
    """A plain checkpoint of a saved training state (`state/` of a run), the newest or that of `step`; gives the step.

    `source` is the checkpoint the run started from: what was not trained comes from it. A state of any layout will do.
    InputError when there is no such state, it is damaged, or it is of another model.
    """
    if step is None:
        found = state.newest(folder)
        if found is None:
            raise InputError(fault("no saved state to export", where=folder, expected="step-… as a running `train` stage leaves them"))
    else:
        path = folder / f"step-{step:08d}"
        wrong = state.damage(path) if path.is_dir() else "it does not exist"
        if wrong is not None:
            there = ", ".join(str(int(other.name[5:])) for other in sorted(folder.glob("step-*[0-9]"))) or "none"
            raise InputError(fault(f"the state of step {step} cannot be exported", where=path, found=wrong,
                                   expected=f"one of the saved steps: {there}"))
        found = state.Saved(path, read_json(path / "state.json"))
    export(None, out, source=source, weights=read_weights(found.path, source))
    return int(found.facts["step"])


def read_weights(path: Path, source: Path) -> dict[str, Tensor]:
    """The trained weights in a saved state by their full names; InputError when they are not of the model in `source`."""
    from safetensors import safe_open

    from penjing.models.checkpoint import load_model

    names: set[str] = set()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            names.update(name.removeprefix("model.") for name in opened.keys() if name.startswith("model."))  # noqa: SIM118
    model = load_model(source, dtype="float32")
    shapes = dict(model.named_parameters())
    strange = sorted(names - set(shapes))
    if strange or not names:
        raise InputError(fault("the state is of another model", where=path, found=strange[0] if strange else "no weights",
                               expected=f"weights of {source}"))
    weights = {name: torch.empty_like(shapes[name].detach()) for name in sorted(names)}
    targets = {f"model.{name}": tensor for name, tensor in weights.items()}
    if (path / state.TENSORS).is_file():
        state.read_whole(path, targets)
    else:
        shards.read(path, targets, alone=True)
    return weights


def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor.view(parameters[name].shape))
