"""A model that runs with one layer in memory, and forward passes that wait for each other.

A pass over any transformers model is left to the model's own code. It runs in a thread of its own that stops whenever a
module named beforehand is about to be called; only one thread ever runs. So many passes can be taken forward abreast,
layer by layer, without knowing how an architecture calls its layers: what each pass holds between two stops (the
residual stream, masks, T5's position bias) stays on its own stack, and weights can come and go in between.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from penjing.errors import InputError, fault
from penjing.models import family
from penjing.models.checkpoint import open_checkpoint
from penjing.models.cost import count_parameters
from penjing.prune.arrays import StoredArray

RESIDENT_BYTES = 2 << 30
"""A model whose float32 weights are smaller than this is held whole unless the caller says otherwise."""


class Weights(Protocol):
    """Where a model's weights come from: an open checkpoint, or a cut that nobody has written yet."""

    path: Path
    config: dict[str, Any]

    @property
    def names(self) -> list[str]: ...

    def dtype(self, name: str) -> str: ...

    def read_float(self, name: str, rows: Any = None) -> np.ndarray: ...


class Layered:
    """A checkpoint as a transformers model whose layers are read when they are needed and given back after.

    Weights are float32. `layers` are the module names in the order in which they run, encoder before decoder. Of an
    embedding only the rows of a batch are read, where the model's body can run without its head.
    """

    def __init__(self, weights: str | Path | Weights, *, streamed: bool | None = None) -> None:
        self.weights: Weights = open_checkpoint(weights) if isinstance(weights, (str, Path)) else weights
        self.path = Path(self.weights.path)
        self.config = self.weights.config
        self.family = family.of(self.config)
        self.table = self.family.tensors(self.config)
        self._files = self.family.match(self.config, self.weights.names, where=self.path)
        self._changed: dict[str, StoredArray] = {}
        self._used: set[str] = set()
        self.streamed = not fits(self.config) if streamed is None else streamed
        self.model = _shell(self.config)
        self._names = self._same_weights()
        self.head = next((item.name for item in self.family.vocab_tensors(self.config) if item.role == "output"), None)
        """The head's weight, where it is a weight of its own."""
        late = {self.head, *self._read_by_rows()} if self.streamed and self.has_body else set()
        self._set(name for name, tensor in self.table.items() if tensor.layer is None and name not in late)
        if not self.streamed:
            self._set(name for name, tensor in self.table.items() if tensor.layer is not None)
        left = [] if self.streamed else [n for n, p in self.model.named_parameters() if p.is_meta]
        if left:
            raise InputError(fault(f"{len(left)} weights of the model are in no row of the table, first '{left[0]}'",
                                   where=self.path))

    @property
    def layers(self) -> list[str]:
        """Module names of all layers in the order in which they run."""
        sizes = self.family.sizes(self.config)
        return [stack.prefix.format(i=layer).rstrip(".")
                for stack in self.family.stacks for layer in range(sizes[stack.size])]

    def stack_of(self, layer: str) -> tuple[str, int]:
        """(stack name, number) of a layer's module name."""
        sizes = self.family.sizes(self.config)
        return next((stack.name, number) for stack in self.family.stacks for number in range(sizes[stack.size])
                    if stack.prefix.format(i=number).rstrip(".") == layer)

    @property
    def has_body(self) -> bool:
        """Whether the model runs up to its last norm without its head."""
        return self.family.seq2seq or self.model.base_model is not self.model

    def load(self, layer: str) -> None:
        """Read a layer's weights, when they are not there."""
        if self.streamed:
            self._set(name for name in self.table if name.startswith(f"{layer}."))

    def release(self, layer: str) -> None:
        """Give a layer's memory back."""
        if self.streamed:
            self._drop(name for name in self.table if name.startswith(f"{layer}."))
            give_back()

    def on_demand(self) -> list[Any]:
        """Hooks that read each module's weights just before it runs, instead of whole layers; `release_used` gives them back.

        They must be put on after the stops of `Passes`, so that a pass that waits before a module has not read it.
        """
        owners: dict[str, list[str]] = {}
        for name, tensor in self.table.items():
            if tensor.layer is not None and self.streamed:
                owners.setdefault(name.rpartition(".")[0], []).append(name)
        return [self.model.get_submodule(owner).register_forward_pre_hook(lambda module, args, names=names: self._need(names))
                for owner, names in owners.items()]

    def release_used(self) -> None:
        """Give back what the hooks of `on_demand` read."""
        self._drop(self._used)
        self._used.clear()
        give_back()

    def read(self, name: str, rows: Any = None) -> np.ndarray:
        """A weight of the table as float32, from the files or as it was changed."""
        if name in self._changed:
            values = self._changed[name].read()
            return values if rows is None else values[rows]
        return self.weights.read_float(self._files[name], rows)

    def dtype(self, name: str) -> str:
        """What the files hold of a weight: BF16, …"""
        return self.weights.dtype(self._files[name])

    def change(self, name: str, value: StoredArray) -> None:
        """Let the model have another weight from now on."""
        self._changed[name] = value
        if not self.streamed or name in self._used:
            self._put(name, torch.from_numpy(value.read()))

    def release_embeddings(self) -> None:
        """Give the embeddings' memory back, once every pass is beyond them; a tied head that passes need at their end stays."""
        if self.streamed and self.has_body:
            self._drop(name for name, tensor in self.table.items() if tensor.kind == "embedding")

    def load_head(self) -> None:
        """Read the head, when it is not there; of a tied model the embedding."""
        self._set(name for name, tensor in self.table.items()
                  if (name == self.head or (self.head is None and tensor.kind == "embedding"))
                  and self.module(name).weight.is_meta)

    def release_head(self) -> None:
        """Give back what `load_head` read."""
        if self.streamed and self.has_body:
            self._drop(name for name, tensor in self.table.items()
                       if name == self.head or (self.head is None and tensor.kind == "embedding"))

    def module(self, weight: str) -> Any:
        """The module that holds a weight."""
        return self.model.get_submodule(weight.rpartition(".")[0])

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states [B, S, D] after the last norm, ready for the head; logits where the model has no body of its own."""
        if self.family.seq2seq:
            encoded = self.model.get_encoder()(input_ids=batch["input_ids"]).last_hidden_state
            decoded = self.model.get_decoder()(input_ids=batch["decoder_input_ids"], encoder_hidden_states=encoded, use_cache=False)
            return decoded.last_hidden_state
        out = self.model.base_model(**batch, use_cache=False)
        return out.last_hidden_state if self.has_body else out.logits

    def _need(self, names: Sequence[str]) -> None:
        absent = [name for name in names if name not in self._used]
        self._set(absent)
        self._used.update(absent)

    def _read_by_rows(self) -> list[str]:
        """Weights of embeddings, whose modules from now on read what a batch needs of them."""
        found = []
        for name, tensor in self.table.items():
            owners = {alias.rpartition(".")[0] for alias in self._names.get(name, ())}
            modules = {owner: self.model.get_submodule(owner) for owner in owners}
            tables = [module for module in modules.values() if type(module) is nn.Embedding]
            if tensor.kind != "embedding" or not tables:
                continue
            for module in tables:
                vars(module)["forward"] = partial(self._rows, name)
            found.append(name)
        return found

    def _rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        known, places = ids.unique(return_inverse=True)
        return torch.from_numpy(self.read(name, known.numpy()))[places]

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._put(name, torch.empty(self.table[name].shape, device="meta"))

    def _same_weights(self) -> dict[str, list[str]]:
        """Weight of the table -> all names under which the model has it; a head of its own is split off even where the
        class ties it until it sees the file (T5).
        """
        groups: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        found = {}
        for names in groups.values():
            first, *others = [name for name in names if name in self.table] or names[:1]
            found[first] = [name for name in names if name not in others]
            found |= {name: [name] for name in others}
        return found

    def _set(self, names: Iterable[str]) -> None:
        for name in names:
            self._put(name, torch.from_numpy(self.read(name)))

    def _put(self, name: str, value: torch.Tensor) -> None:
        if name not in self._names:
            raise InputError(fault(f"the model has no weight '{name}'", where=self.path))
        parameter = nn.Parameter(value, requires_grad=False)
        for alias in self._names[name]:
            owner, _, attribute = alias.rpartition(".")
            self.model.get_submodule(owner)._parameters[attribute] = parameter


def give_back() -> None:
    """Let the C library give freed memory back to the system: what threads freed it would keep, a third more at the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a model is small enough to be held whole unless the caller says otherwise."""
    return 4 * count_parameters(config) <= RESIDENT_BYTES


class Passes:
    """Forward passes over several batches, taken forward together from one stop to the next.

    >>> # passes.to("model.layers.3")   every pass now stands before layer 3
    """

    def __init__(self, model: nn.Module, run: Callable[[Any], Any], batches: Sequence[Any], stops: Iterable[str]) -> None:
        self._passes = [_Pass(run, batch) for batch in batches]
        self._current: _Pass | None = None
        self._hooks = []
        for name in stops:
            self._hooks.append(model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, kwargs, name=name: self._arrive(name, args, kwargs), with_kwargs=True))

    def to(self, stop: str, visit: Callable[[int, Any], None] | None = None) -> None:
        """Take every pass to the place where module `stop` is about to run; `visit(number, its input)` as each arrives."""
        for number, item in enumerate(self._passes):
            self._run(item, stop)
            if item.where != stop:
                raise InputError(fault(f"module '{stop}' never runs in a forward pass", found=f"ended after {item.where}"))
            if visit is not None:
                visit(number, item.inputs)

    def finish(self, visit: Callable[[int, Any], None] | None = None) -> None:
        """Take every pass to its end; `visit(number, output)` as each ends."""
        for number, item in enumerate(self._passes):
            self._run(item, None)
            if visit is not None:
                visit(number, item.output)
            item.output = None

    def close(self) -> None:
        """End passes that are still standing somewhere and take the hooks off."""
        for item in self._passes:
            item.abandon()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, item: _Pass, stop: str | None) -> None:
        while not item.done and (stop is None or item.where != stop):
            self._current = item
            item.go()
            self._current = None
            if item.error is not None:
                raise item.error

    def _arrive(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._current is not None:
            self._current.stand(name, args[0] if args else kwargs["hidden_states"])


class _Abandoned(BaseException):
    pass


class _Pass:
    def __init__(self, run: Callable[[Any], Any], batch: Any) -> None:
        self.where: str | None = None
        self.inputs: Any = None
        self.output: Any = None
        self.error: BaseException | None = None
        self.done = False
        self._abandoned = False
        self._gate, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._body, args=(run, batch), daemon=True)

    def go(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._gate.release()
        self._back.acquire()

    def stand(self, name: str, inputs: Any) -> None:
        self.where, self.inputs = name, inputs
        self._back.release()
        self._gate.acquire()
        self.inputs = None
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        if self._thread.ident is not None and not self.done:
            self._abandoned = True
            self.go()
            self._thread.join()

    def _body(self, run: Callable[[Any], Any], batch: Any) -> None:
        try:
            with torch.inference_mode():
                self.output = run(batch)
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._back.release()


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Hooks that are taken off at the end of the block."""
    hooks = list(hooks)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shell(config: Mapping[str, Any]) -> Any:
    """The model of a configuration with weights on no device and its buffers (rotary frequencies, masks) computed."""
    import transformers
    from transformers import initialization

    if config.get("model_type") == "openba":
        importlib.import_module("penjing.models.openba")  # registers the Auto classes
    kind = transformers.AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else transformers.AutoModelForCausalLM
    values = {key: value for key, value in config.items() if key != "model_type"}
    settings = transformers.AutoConfig.for_model(config["model_type"], **values)
    with torch.device("meta"), initialization.meta_device_safe_creation_ops():
        model = kind.from_config(settings, dtype=torch.float32)
    for module in model.modules():
        buffers = {name: value for name, value in module.named_buffers(recurse=False) if value.is_meta}
        if buffers:
            for name, value in buffers.items():
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
            model._init_weights(module)
    model.tie_weights()
    return model.eval().requires_grad_(False)
