"""A model whose matrices are read from the checkpoint after it was cut over processes, so that none reads or holds the others' shares.

Everything that decides how a model is cut needs names and shapes only. Norms and biases are small and read at once. A checkpoint whose
files call the weights otherwise than the model does is read whole by every process, as transformers does it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penjing.models.checkpoint import Checkpoint, open_checkpoint

_PLAIN = frozenset({"F64", "F32", "BF16", "F16"})


class Outline:
    """The weights of `model` that are still in the files of its checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names: dict[int, tuple[nn.Parameter, str]] = {}
        """The name in the files of a parameter without content, by its identity."""

    def watch(self, model: nn.Module) -> None:
        """Remember what the parameters are called; again after they were replaced by parts of themselves."""
        there = set(self._checkpoint.names)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in there and _is_empty(parameter):
                self._names[id(parameter)] = (parameter, name)

    def fill(self, root: nn.Module, device: torch.device, *, largest: int | None = None) -> None:
        """Read what the parameters in `root` hold on this process; with `largest`, of those with so many dimensions at most."""
        read: dict[int, nn.Parameter] = {}  # shared tables stay shared
        for module in root.modules():
            for key, parameter in module._parameters.items():
                if parameter is None or not _is_empty(parameter) or (largest is not None and parameter.ndim > largest):
                    continue
                if id(parameter) not in read:
                    read[id(parameter)] = self._read(parameter, self._names[id(parameter)][1], device)
                module._parameters[key] = read[id(parameter)]

    def close(self) -> None:
        """Nothing more will be read."""
        self._checkpoint.close()

    def put(self, root: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Make `weights`, by their names, the contents of parameters of `root`; they are not copied."""
        parameters = dict(root.named_parameters())
        given = {id(parameters[name]): nn.Parameter(tensor.view(parameters[name].shape)) for name, tensor in weights.items()}
        for module in root.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in given:
                    module._parameters[key] = given[id(parameter)]

    def _read(self, parameter: nn.Parameter, name: str, device: torch.device) -> nn.Parameter:
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if not isinstance(parameter, DTensor):
            content = self._checkpoint.read(name).view(parameter.shape)
            return nn.Parameter(content.to(device, parameter.dtype), requires_grad=parameter.requires_grad)
        shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        place = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
        if tuple(parameter.shape) == self._checkpoint.shape(name):
            content = self._checkpoint.read(name, place[0])[(slice(None), *place[1:])]
        else:  # seen as several matrices
            content = self._checkpoint.read(name).view(parameter.shape)[place]
        local = content.to(device, parameter.dtype).contiguous()
        made = DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
                                  stride=parameter.stride())
        return nn.Parameter(made, requires_grad=parameter.requires_grad)


def outline(path: Path) -> tuple[nn.Module, Outline] | None:
    """The model in `path` in fp32 without its matrices; None where it has to be read whole."""
    from penjing.models.checkpoint import build_model

    with _parameters_without_content():
        model = build_model(path)
    checkpoint = open_checkpoint(path)
    if not _fits(model, checkpoint):
        checkpoint.close()
        return None
    kept = model.state_dict().keys() & set(checkpoint.names)
    for name, buffer in model.named_buffers():
        if name in kept:
            buffer.copy_(checkpoint.read(name))
    found = Outline(checkpoint)
    found.watch(model)
    found.fill(model, torch.device("cpu"), largest=1)
    return model, found


def _fits(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Whether every weight is in the files as the plain numbers it is, and once."""
    there, seen = set(checkpoint.names), set()
    if "quantization_config" in checkpoint.config:
        return False
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in there:
            if id(parameter) in seen or checkpoint.dtype(name) not in _PLAIN or checkpoint.shape(name) != tuple(parameter.shape):
                return False
            seen.add(id(parameter))
    return seen == {id(parameter) for parameter in model.parameters()}


@contextlib.contextmanager
def _parameters_without_content() -> Iterator[None]:
    """Modules that this thread makes have parameters without content, and buffers with theirs."""
    register, own = nn.Module.register_parameter, threading.get_ident()

    def without(self: nn.Module, name: str, param: Any) -> None:
        if param is not None and not param.is_meta and threading.get_ident() == own:
            param = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = without  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _is_empty(parameter: Tensor) -> bool:
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.is_meta
