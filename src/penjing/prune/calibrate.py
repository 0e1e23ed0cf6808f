"""What a model does on text, measured once and used for every target: one forward pass, one layer in memory at a time.

For every unit that may be cut the forward statistics of all cheap rules are taken together, so that a file of scores
serves any size: how large a unit's activation is (Minitron, arXiv 2407.14679), how much of the residual stream it
writes (output energy), how much each layer turns the stream (block influence, ShortGPT, arXiv 2403.03853), and the
covariance of the normalised stream that the rotation needs. With `taylor`, first-order loss changes are taken too, which
needs gradients and the whole model in memory.

Legend: B sequences, S places, T tokens = B*S, D hidden, F width of a writer's input, H heads, C head_dim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from penjing import console
from penjing.contract import Job
from penjing.errors import ConfigError, InputError, Interrupted, fault
from penjing.files import atomic_write
from penjing.models import axes
from penjing.models.reader import open_checkpoint
from penjing.prune.layerwise import Layered, Passes, hooked

VERSION = 1
FILE = "scores.safetensors"
EPSILON = 1e-12
SAMPLES = 128
"""Normalised states kept of each norm, from which the scale that a cut norm needs is taken for any target."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of one checkpoint on one text. Arrays by `<unit>.<metric>`, for example `layers.3.ffn.output_energy`."""

    arrays: Mapping[str, np.ndarray]
    readers: Mapping[str, list[str]]
    """Norm weight -> weights of the projections that read the normed stream, as seen while the model ran."""
    writers: Mapping[str, str]
    """Weight of a projection that writes into the stream -> the unit its input is made of (`layers.3.ffn`)."""
    order: list[str]
    """Norm and writer weights in the order in which they ran."""
    source: str
    """Fingerprint of the checkpoint that was measured."""
    tokens: int
    sequences: int
    text: str = ""
    """Hash of the sequences it was measured on."""

    def metric(self, name: str) -> dict[str, np.ndarray]:
        """Unit -> scores [size] of one metric; InputError when the file does not have it."""
        found = {key[:-len(name) - 1]: value for key, value in self.arrays.items() if key.endswith(f".{name}")}
        if not found:
            known = sorted({key.rpartition(".")[2] for key in self.arrays})
            raise InputError(fault(f"no '{name}' among the calibration's statistics", expected=f"one of {', '.join(known)}",
                                   fix="calibrate with taylor on" if name == "taylor" else None))
        return found

    def save(self, path: Path) -> None:
        """Write one safetensors file; a directory gets `scores.safetensors`."""
        from safetensors.numpy import save

        path = path / FILE if path.is_dir() or not path.suffix else path
        about = {"version": VERSION, "source": self.source, "tokens": self.tokens, "sequences": self.sequences,
                 "readers": dict(self.readers), "writers": dict(self.writers), "order": self.order,
                 "text": self.text}
        with atomic_write(path) as file:
            file.write(save(dict(sorted(self.arrays.items())), {"penjing": json.dumps(about, sort_keys=True)}))


def load_calibration(path: str | Path) -> Calibration:
    """Read what `Calibration.save` wrote; InputError when the file is absent or something else."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(fault("no calibration here", where=path, fix="measure the checkpoint first"))
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("penjing", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(fault("not readable as a calibration", where=path, found=str(error))) from error
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise InputError(fault("not a calibration of this version", where=path, expected=f"version {VERSION}"))
    return Calibration(arrays, about["readers"], about["writers"], about["order"], about["source"], about["tokens"],
                       about["sequences"], about.get("text", ""))


Samples = Sequence[Mapping[str, np.ndarray]]
"""Calibration sequences: `input_ids` [length] each, for an encoder-decoder with `labels` [length] (-100 = no loss)."""


def calibrate(path: str | Path, samples: Samples, *, rows: int = 8, streamed: bool | None = None, taylor: bool = False,
              job: Job | None = None) -> Calibration:
    """Statistics of a checkpoint on token sequences; every token counts once.

    Up to `rows` neighbouring samples of equal length run together. `streamed` holds one layer instead of the whole model;
    None decides by size.
    """
    job = job or Job()
    model = Layered(path, streamed=streamed)
    batches = batches_of(model.config, samples, rows)
    taken = _Statistics(model)
    stops = model.layers
    # the stops come before the statistics' hooks, so that a waiting pass has not yet said what enters the layer
    with console.bar("calibrate", total=len(stops), unit="layers") as bar, \
            Passes(model.model, model.forward, batches, stops) as passes, hooked(taken.hooks()):
        passes.to(stops[0])
        model.release_embeddings()
        for place, layer in enumerate(stops):
            if job.stop():
                raise Interrupted("stopped while calibrating; the same command measures again from the start")
            model.load(layer)
            if place + 1 < len(stops):
                passes.to(stops[place + 1])
            else:
                passes.finish()
            taken.finish_layer(layer)
            model.release(layer)
            bar.advance()
        taken.finish()
    if taylor:
        taken.arrays.update(_taylor(path, batches, taken))
    arrays = {name: np.ascontiguousarray(value, dtype=np.float16 if name.endswith(".sample") else np.float32)
              for name, value in taken.arrays.items()}
    tokens = sum(value.numel() for batch in batches for value in batch.values())
    return Calibration(arrays, taken.readers, {name: unit for name, (unit, _, _) in taken.writers.items()}, taken.order,
                       open_checkpoint(path).fingerprint(), tokens, len(samples), hash_samples(samples))


def hash_samples(samples: Samples) -> str:
    """One hash of all sequences, in order."""
    digest = xxhash.xxh3_128()
    for sample in samples:
        for name, value in sorted(sample.items()):
            digest.update(f"{name} {np.shape(value)}".encode())
            digest.update(np.ascontiguousarray(value, np.int64).data)
    return digest.hexdigest()


def batches_of(config: Mapping[str, Any], samples: Samples, rows: int) -> list[dict[str, torch.Tensor]]:
    """Model inputs of up to `rows` sequences each, unpadded; labels become decoder inputs, shifted right."""
    if not samples:
        raise ConfigError(fault("nothing to measure the model on", expected="at least one calibration sequence"))
    seq2seq = bool(config.get("is_encoder_decoder"))
    made: list[dict[str, np.ndarray]] = []
    for sample in samples:
        item = {"input_ids": np.asarray(sample["input_ids"], np.int64)}
        if seq2seq:
            if "labels" not in sample:
                raise InputError(fault("a calibration sequence for an encoder-decoder has no labels"))
            labels = np.asarray(sample["labels"], np.int64)
            start, pad = config.get("decoder_start_token_id"), config.get("pad_token_id")
            first = start if start is not None else pad or 0
            item["decoder_input_ids"] = np.concatenate([[first], np.where(labels[:-1] < 0, pad or 0, labels[:-1])])
        made.append(item)
    largest = max(int(value.max()) for item in made for value in item.values())
    if largest >= config["vocab_size"]:
        raise InputError(fault("calibration text was made with another tokenizer", found=f"token id {largest}",
                               expected=f"ids below {config['vocab_size']}"))
    batches: list[list[dict[str, np.ndarray]]] = []
    for item in made:
        last = batches[-1] if batches else []
        if last and len(last) < rows and all(value.shape == last[0][name].shape for name, value in item.items()):
            last.append(item)
        else:
            batches.append([item])
    return [{name: torch.from_numpy(np.stack([item[name] for item in group])) for name in group[0]} for group in batches]


class _Statistics:
    """Sums taken by hooks while the passes run."""

    def __init__(self, model: Layered) -> None:
        self.model = model
        self.arrays: dict[str, np.ndarray] = {}
        self.readers: dict[str, list[str]] = {}
        self.order: list[str] = []
        self.norms = [name for name, tensor in model.table.items()
                      if tensor.kind == "norm" and tensor.axes == ("hidden",) and name.endswith(".weight")]
        self.writers = writers_of(model)
        self._cov: np.ndarray | None = None
        self._cov_norms = 0
        self._normed: dict[int, tuple[str, Any]] = {}
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._turns: dict[str, list[float]] = {}
        self._entered: torch.Tensor | None = None
        self._final: list[str] = []
        self._samples: dict[str, list[np.ndarray]] = {}

    def hooks(self) -> list[Any]:
        layers, model = self.model.layers, self.model
        found = [model.module(name).register_forward_hook(lambda m, a, out, name=name: self._norm(name, a[0], out))
                 for name in self.norms]
        for name, tensor in model.table.items():
            if tensor.kind == "linear" and len(tensor.shape) == 2 and tensor.layer is not None:
                found.append(model.module(name).register_forward_pre_hook(lambda m, a, name=name: self._linear(name, a[0])))
        for layer in layers:
            module = model.model.get_submodule(layer)
            found.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            found.append(module.register_forward_hook(lambda m, a, out, layer=layer: self._leave(layer, out)))
        return found

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entered = args[0] if args else kwargs["hidden_states"]

    def _leave(self, layer: str, out: Any) -> None:
        assert self._entered is not None
        after = out[0] if isinstance(out, tuple) else out
        cosine = torch.nn.functional.cosine_similarity(self._entered.double(), after.double(), dim=-1)
        self._turns.setdefault(layer, []).append(float((1 - cosine).sum()))
        self._counts[layer] = self._counts.get(layer, 0) + cosine.numel()
        self._normed = {key: value for key, value in self._normed.items() if value[0] in self._final}

    def _norm(self, name: str, x_BSD: torch.Tensor, out_BSD: torch.Tensor) -> None:
        if self.model.table[name].layer is None:
            self._final.append(name)
        self._normed[out_BSD.data_ptr()] = (name, out_BSD)
        if name not in self.readers:
            self.readers[name] = []
            self.order.append(name)
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1]).float()
        if self.model.family.norm == "layer":
            x_TD = x_TD - x_TD.mean(-1, keepdim=True)
        x_TD = x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + EPSILON)
        gram_DD = (x_TD.T @ x_TD).double().numpy()
        self._cov = gram_DD if self._cov is None else np.add(self._cov, gram_DD, out=self._cov)
        self._cov_norms += len(x_TD)
        self._add(f"{name}:square", gram_DD.diagonal(), len(x_TD))
        self._samples.setdefault(name, []).append(x_TD[:: max(1, len(x_TD) // SAMPLES)].numpy().astype(np.float16))
        mean_BD = out_BSD.abs().mean(1)
        self._add("hidden:activation", mean_BD.square().sum(0).double().numpy(), 1)

    def _linear(self, name: str, x_BSF: torch.Tensor) -> None:
        norm = self._normed.get(x_BSF.data_ptr())
        if norm is not None and norm[1].shape[-1] == x_BSF.shape[-1]:
            if name not in self.readers[norm[0]]:
                self.readers[norm[0]].append(name)
        elif name in self.writers:
            if name not in self.order:
                self.order.append(name)
            size = self.writers[name][1]
            x_BSHC = x_BSF.reshape(*x_BSF.shape[:-1], size, -1).float()
            width = x_BSHC.shape[-1]
            if width == 1:
                x_TF = x_BSHC.reshape(-1, size)
                self._add(f"{name}:square", x_TF.square().sum(0).double().numpy(), len(x_TF))
                mean = x_BSHC.squeeze(-1).abs().reshape(x_BSF.shape[0], -1, size).mean(1)
            else:
                x_HTC = x_BSHC.reshape(-1, size, width).transpose(0, 1)
                self._add(f"{name}:gram", (x_HTC.transpose(1, 2) @ x_HTC).double().numpy(), x_HTC.shape[1])
                mean = x_BSHC.norm(dim=-1).reshape(x_BSF.shape[0], -1, size).mean(1)
            self._add(f"{name}:activation", mean.square().sum(0).double().numpy(), 1)

    def _add(self, key: str, value: np.ndarray, count: int) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value.copy()
        self._counts[key] = self._counts.get(key, 0) + count

    def finish_layer(self, layer: str) -> None:
        """Turn a layer's sums into scores while its weights are there."""
        for name, (unit, size, input_dim) in self.writers.items():
            if not name.startswith(f"{layer}."):
                continue
            weight = _matrix(self.model, name, input_dim)
            if f"{name}:square" in self._sums:
                energy = self._sums[f"{name}:square"] / self._counts[f"{name}:square"] * _column_squares(weight)
            else:
                gram_HCC = torch.from_numpy(self._sums.pop(f"{name}:gram")) / self._counts[f"{name}:gram"]
                weight_HDC = weight.double().reshape(len(weight), size, -1).transpose(0, 1)
                energy = torch.einsum("hdc,hce,hde->h", weight_HDC, gram_HCC, weight_HDC).numpy()
            self._score(unit, "output_energy", energy)
            self._score(unit, "activation", np.sqrt(self._sums.pop(f"{name}:activation")))
        stack, number = self.model.stack_of(layer)
        self._turn(stack, number, sum(self._turns[layer]) / self._counts[layer])
        for norm, names in self.readers.items():
            for name in names:
                if name.startswith(f"{layer}."):
                    self._read_energy(norm, _matrix(self.model, name, None))

    def finish(self) -> None:
        """The scores that need the whole pass: those of hidden, and the stream's covariance."""
        self.model.load_head()
        head = self.model.model.get_output_embeddings()
        last = [name for name in self.norms if self.model.table[name].layer is None]
        if head is not None and last:
            name = next(n for n, m in self.model.model.named_modules() if m is head)
            self.readers[last[-1]].append(f"{name}.weight")
            self._read_energy(last[-1], head.weight.float())
        assert self._cov is not None
        self.arrays["hidden.covariance"] = self._cov / self._cov_norms
        self.arrays["hidden.activation"] = np.sqrt(self._sums["hidden:activation"])
        for name, parts in self._samples.items():
            states = np.concatenate(parts)
            self.arrays[f"{name}.sample"] = states[np.linspace(0, len(states) - 1, min(SAMPLES, len(states))).astype(int)]

    def _read_energy(self, norm: str, weight_OD: torch.Tensor) -> None:
        square = self._sums[f"{norm}:square"] / self._counts[f"{norm}:square"]
        gamma = self.model.module(norm).weight.double().numpy()
        columns = _column_squares(weight_OD)
        # the share of each projection's output that a place of the stream carries, so that all projections count alike
        energy = square * gamma**2 * columns
        self._score("hidden", "output_energy", energy / energy.sum())

    def _score(self, unit: str, metric: str, value: np.ndarray) -> None:
        key = f"{unit}.{metric}"
        self.arrays[key] = self.arrays[key] + value if key in self.arrays else value

    def _turn(self, stack: str, number: int, value: float) -> None:
        count = sum(1 for layer in self.model.layers if self.model.stack_of(layer)[0] == stack)
        self.arrays.setdefault(f"{stack}.block_influence", np.zeros(count))[number] = value


def writers_of(model: Layered) -> dict[str, tuple[str, int, int]]:
    """Weight of each projection inside a layer whose input is units and whose output is the stream -> (unit, number of
    units, which dimension of the weight is its input).
    """
    found = {}
    for name, tensor in model.table.items():
        if tensor.kind != "linear" or tensor.layer is None or len(tensor.axes) != 2 or "hidden" not in tensor.axes:
            continue
        input_dim = 0 if type(model.module(name)).__name__ == "Conv1D" else 1
        names = [unit for unit in axes.units(tensor.axes[input_dim]) if unit not in ("hidden", "head_dim")]
        if tensor.axes[1 - input_dim] == "hidden" and len(names) == 1:
            size = model.family.sizes(model.config)[model.family.size_of_unit(names[0])]
            found[name] = (names[0], size, input_dim)
    return found


def _column_squares(weight_OI: torch.Tensor) -> np.ndarray:
    """Sum of squares of each column, float64, without a copy of the weight."""
    return torch.linalg.vector_norm(weight_OI, dim=0, dtype=torch.float64).square().numpy()


def _matrix(model: Layered, name: str, input_dim: int | None) -> torch.Tensor:
    """A projection's weight as [out, in]."""
    if input_dim is None:
        input_dim = 0 if type(model.module(name)).__name__ == "Conv1D" else 1
    weight = model.module(name).weight.detach().float()
    return weight.T if input_dim == 0 else weight


def _taylor(path: str | Path, batches: Sequence[Mapping[str, torch.Tensor]], taken: _Statistics) -> dict[str, np.ndarray]:
    """First-order change of the loss when a unit is set to zero: sum over sequences of |sum of activation * gradient|."""
    model = Layered(path, streamed=False)
    found: dict[str, np.ndarray] = {}
    kept: list[tuple[str, int, torch.Tensor]] = []

    def keep(unit: str, size: int, x: torch.Tensor) -> None:
        if x.requires_grad:
            x.retain_grad()
            kept.append((unit, size, x))

    hooks = [model.module(name).register_forward_pre_hook(lambda m, a, u=unit, s=size: keep(u, s, a[0]))
             for name, (unit, size, _) in taken.writers.items()]
    hooks += [model.module(name).register_forward_hook(lambda m, a, out: keep("hidden", out.shape[-1], out))
              for name in taken.norms]
    embeddings = model.model.get_input_embeddings()
    embeddings.weight.requires_grad_(True)  # so that every activation has a gradient
    with hooked(hooks):
        for batch in batches:
            with torch.enable_grad():
                logits = model.model(**batch, use_cache=False).logits
                labels = batch.get("decoder_input_ids", batch["input_ids"])  # the decoder's input is its labels, shifted
                loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                                                         reduction="sum")
                loss.backward()
            for unit, size, x in kept:
                assert x.grad is not None
                change = (x.detach() * x.grad).reshape(*x.shape[:-1], size, -1).sum(-1)
                change_B = change.reshape(x.shape[0], -1, size).sum(1).abs().sum(0).double().numpy()
                key = f"{unit}.taylor"
                found[key] = found[key] + change_B if key in found else change_B
            kept.clear()
            embeddings.weight.grad = None
    return found
