"""Least squares instead of training: the projections of a cut model fitted to the uncut one, in closed form.

Both models run over the same text, abreast, one layer of each in memory. From the first norm to the head, what stays is
fitted before what follows sees it, so that later fits make up for what earlier ones could not:

- what reads a norm (q, k, v, gate, up, the head) is fitted so that, fed with the cut model's normed stream, it gives what
  the uncut projection gives on the uncut stream; this contains any correction of the norm's scale;
- what writes into the stream (o, down) is fitted so that the cut stream after it is the uncut stream in the cut's
  coordinates: it also makes up for the error that came in, and for layers that were dropped behind it.

Each fit is a ridge regression towards the weights it replaces, so little text cannot do much harm.

Legend: T tokens, D hidden of the source, k hidden of the cut model, F inputs of a projection, O outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing import console
from penjing.errors import ConfigError, InputError, fault
from penjing.models import axes
from penjing.prune.calibrate import Calibration, batches_of, writers_of
from penjing.prune.cut import apply
from penjing.prune.importance import calibration_of
from penjing.prune.layerwise import Layered, Passes
from penjing.prune.plan import Operation, PruningPlan, source_names, unit_sizes, with_operations
from penjing.prune.rotation import basis_of, head_factor
from penjing.prune.width import Context

RIDGE = 0.1
"""Weight of the old weights in a fit, times inputs per token of text, relative to the mean square of the inputs: with 100 tokens
for each input 0.001, which was best in `bench/prune_quality.py`; with few tokens the old weights count for more."""
WIDE = 8192
"""Inputs from which on sums are float32, to hold them in memory."""
TOLERANCE = 1e-3


def refit(plan: PruningPlan, context: Context, *, ridge: float = RIDGE, readers: bool = True, writers: bool = True,
          rows: int = 8, streamed: bool | None = None) -> PruningPlan:
    """The plan with every refitted weight as a `replace` operation.

    ConfigError without calibration samples; InputError when the architecture's stream is not the plain sum of what its
    projections write.
    """
    if not context.samples:
        raise ConfigError(fault("a refit needs calibration text", fix="give the stage a 'tokens' or 'corpus' input"))
    calibration = calibration_of(context)
    settings = context.settings.get("refit", {})
    with tempfile.TemporaryDirectory(prefix="refit-", dir=context.work) as work:
        apply(plan, context.checkpoint, Path(work) / "cut", check_content=False)
        fit = _Fit(plan, context, calibration, Path(work) / "cut", ridge=float(settings.get("ridge", ridge)), rows=rows,
                   streamed=streamed)
        found = fit.run(readers=bool(settings.get("readers", readers)), writers=bool(settings.get("writers", writers)))
    return with_operations(plan, {name: [Operation("replace", array=value)] for name, value in found.items()})


class _Side:
    """A model, its passes, and the layers it reads and gives back on the way to a stop."""

    def __init__(self, model: Layered, batches: Sequence[Any], stops: Sequence[str]) -> None:
        self.model = model
        self.passes = Passes(model.model, model.forward, batches, [*model.layers, *stops])
        self._next = 0

    def to(self, weight: str, visit: Any = None) -> None:
        """Take every pass to the module of `weight`."""
        stop = weight.rpartition(".")[0]
        layers = self.model.layers
        while self._next < len(layers) and self._before(layers[self._next], stop):
            self.passes.to(layers[self._next])
            if self._next:
                self.model.release(layers[self._next - 1])
            self.model.load(layers[self._next])
            self._next += 1
        self.passes.to(stop, visit)

    def _before(self, layer: str, stop: str) -> bool:
        """Whether `layer` starts before `stop` does: it holds the stop, an earlier one of its stack or an earlier stack."""
        layers = self.model.layers
        holder = next((place for place, name in enumerate(layers) if stop.startswith(f"{name}.")), None)
        if holder is None:  # the last norm of a stack
            top = stop.rpartition(".")[0]
            inside = [place for place, name in enumerate(layers) if name.startswith(f"{top}.")]
            holder = max(inside) if inside else len(layers) - 1
        return layers.index(layer) <= holder


class _Fit:
    def __init__(self, plan: PruningPlan, context: Context, calibration: Calibration, cut: Path, *, ridge: float, rows: int,
                 streamed: bool | None) -> None:
        self.ridge = ridge
        self.plan = plan
        self.basis_kD = torch.from_numpy(np.ascontiguousarray(basis_of(plan)))
        self.old_name = source_names(plan)
        new_name = {old: new for new, old in self.old_name.items()}
        self.calibration = calibration
        teacher, student = Layered(context.checkpoint.path, streamed=streamed), Layered(cut, streamed=streamed)
        self.norms = [name for name in calibration.order if name in calibration.readers and name in new_name]
        self.new_name = new_name
        self.gaps = self._gaps(calibration.order)
        batches = batches_of(teacher.config, context.samples, rows)
        self.tokens = sum(batch["input_ids"].numel() for batch in batches)
        writers = [new_name[name] for gap in self.gaps for name in gap]
        self.teacher = _Side(teacher, batches, [_module(name) for name in self.norms])
        self.student = _Side(student, batches, [_module(name) for name in [*map(new_name.__getitem__, self.norms), *writers]])
        self.writers = writers_of(student)
        self.found: dict[str, np.ndarray] = {}
        self._waiting: dict[str, tuple[str, torch.Tensor, torch.Tensor, float]] = {}

    def _gaps(self, order: Sequence[str]) -> list[list[str]]:
        """The writers that stay, between each norm that stays and the next."""
        gaps: list[list[str]] = []
        for name in order:
            if name in self.calibration.readers:
                if name in self.norms:
                    gaps.append([])
            elif name in self.new_name and gaps:
                gaps[-1].append(name)
        return gaps

    def run(self, *, readers: bool, writers: bool) -> dict[str, np.ndarray]:
        with self.teacher.passes, self.student.passes, console.bar("refit", total=len(self.norms), unit="norms") as bar, \
                torch.inference_mode():
            full: dict[int, torch.Tensor] = {}
            self.teacher.to(self.norms[0], full.__setitem__)
            for place, norm in enumerate(self.norms):
                stream: dict[int, torch.Tensor] = {}
                self.student.to(self.new_name[norm], stream.__setitem__)
                if place == 0:
                    self.teacher.model.release_embeddings()
                    self.student.model.release_embeddings()
                if place + 1 == len(self.norms):
                    self.teacher.model.load_head()
                    self.student.model.load_head()
                if readers:
                    self._fit_readers(norm, full, stream)
                if place + 1 < len(self.norms):
                    written = self._watch_teacher(self.gaps[place])
                    before, full = full, {}
                    self.teacher.to(self.norms[place + 1], full.__setitem__)
                    self._unwatch()
                    if place == 0 and self._neighbours(0):
                        self._check_sum(before, full, written)
                    if writers:
                        self._fit_writers(self.gaps[place], full, stream, written)
                bar.advance()
        return self.found

    # ------------------------------------------------------------------------------------------------------- readers

    def _fit_readers(self, norm: str, full: Mapping[int, torch.Tensor], stream: Mapping[int, torch.Tensor]) -> None:
        teacher = self.teacher.model.module(norm)
        student = self.student.model.module(self.new_name[norm])
        gram_kk, cross_Dk = None, None
        for number in full:
            x_TD, x_Tk = _flat(teacher(full[number])), _flat(student(stream[number]))
            gram_kk = _sum(gram_kk, x_Tk.T @ x_Tk)
            cross_Dk = _sum(cross_Dk, x_TD.T @ x_Tk)
        assert gram_kk is not None and cross_Dk is not None
        factor_kk, weight = _factor(gram_kk, self.ridge / self.tokens)
        for old in self.calibration.readers[norm]:
            if old not in self.new_name and not self._is_head(old):
                continue
            new = self.new_name.get(old, old)
            self._waiting[old] = (new, factor_kk, cross_Dk, weight)
        self._fit_waiting()

    def _fit_waiting(self) -> None:
        """Fit the readers whose layers are in memory: cross-attention reads the encoder's end long before it runs."""
        for old, (new, factor_kk, cross_Dk, weight) in list(self._waiting.items()):
            sides = ((self.teacher, old), (self.student, new))
            if not any(side.model.module(name).weight.is_meta for side, name in sides):
                self._fit_reader(new, old, factor_kk, cross_Dk, weight)
                del self._waiting[old]

    def _fit_reader(self, new: str, old: str, factor_kk: torch.Tensor, cross_Dk: torch.Tensor, weight: float) -> None:
        weight_OD = _as_linear(self.teacher.model, old).to(cross_Dk.dtype)
        table = self.plan.family.tensors(self.plan.source_config)
        if old in table:
            label = table[old].axes[1 if _transposed(self.teacher.model, old) else 0]
            rows = axes.gather(label, unit_sizes(self.plan.source_config), self.plan.keep)
            weight_OD = weight_OD if rows is None else weight_OD[torch.from_numpy(rows)]
        scale = head_factor(self.plan) if table.get(old) is None or table[old].layer is None else 1.0
        target_Ok = scale * weight_OD @ cross_Dk
        self._set(new, _solve(factor_kk, target_Ok, _as_linear(self.student.model, new), weight))

    def _is_head(self, name: str) -> bool:
        """A tied head is not fitted: it would change the input embedding too. An untied one is."""
        return name in self.plan.family.tensors(self.plan.target_config)

    # ------------------------------------------------------------------------------------------------------- writers

    def _watch_teacher(self, gap: Sequence[str]) -> dict[str, dict[int, torch.Tensor]]:
        written: dict[str, dict[int, torch.Tensor]] = {name: {} for name in gap}
        self._hooks: list[Any] = []
        for name in gap:
            module = self.teacher.model.module(name)
            self._hooks.append(module.register_forward_hook(
                lambda m, a, out, name=name: written[name].__setitem__(len(written[name]), _flat(out))))
        return written

    def _unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _neighbours(self, place: int) -> bool:
        """Whether nothing of the source was dropped between a norm and the next."""
        order = self.calibration.order
        first, last = order.index(self.norms[place]), order.index(self.norms[place + 1])
        return all(name in self.new_name for name in order[first:last])

    def _check_sum(self, before: Mapping[int, torch.Tensor], after: Mapping[int, torch.Tensor],
                   written: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        total = _flat(before[0]) + sum((parts[0] for parts in written.values()), torch.zeros(()))
        error = float((total - _flat(after[0])).norm() / _flat(after[0]).norm())
        if error > TOLERANCE:
            raise InputError(fault(f"the stream of {self.plan.family.model_type} is not the plain sum of what its projections "
                                   "write, so they cannot be refitted", found=f"relative difference {error:.3g}",
                                   fix="cut without refit"))

    def _fit_writers(self, gap: Sequence[str], full: Mapping[int, torch.Tensor], stream: Mapping[int, torch.Tensor],
                     written: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        before = {number: _flat(value).clone() for number, value in stream.items()}
        for place, old in enumerate(gap):
            new = self.new_name[old]
            gram_FF, cross_kF = None, None
            inputs: dict[int, torch.Tensor] = {}
            self.student.to(new, inputs.__setitem__)
            module = self.student.model.module(new)
            bias = module.bias if getattr(module, "bias", None) is not None else torch.zeros(())
            for number, value in inputs.items():
                a_TF = _flat(value)
                if place + 1 < len(gap):
                    target_Tk = written[old][number] @ self.basis_kD.T
                else:
                    target_Tk = _flat(full[number]) @ self.basis_kD.T - before[number]
                gram_FF = _sum(gram_FF, a_TF.T @ a_TF)
                cross_kF = _sum(cross_kF, (target_Tk - bias).T @ a_TF)
            assert gram_FF is not None and cross_kF is not None
            factor_FF, weight = _factor(gram_FF, self.ridge / self.tokens)
            del gram_FF
            self._set(new, _solve(factor_FF, cross_kF, _as_linear(self.student.model, new), weight))
            for number, value in inputs.items():
                before[number] = before[number] + _flat(module(value))

    def _set(self, new: str, weight_OF: torch.Tensor) -> None:
        module = self.student.model.module(new)
        weight = weight_OF.T.contiguous() if _transposed(self.student.model, new) else weight_OF.contiguous()
        module.weight.data.copy_(weight)
        self.found[new] = weight.numpy()


def _factor(gram_FF: torch.Tensor, ridge: float) -> tuple[torch.Tensor, float]:
    """Cholesky factor of gram + w I and w = ridge * trace(gram); `gram_FF` is used up."""
    weight = ridge * float(gram_FF.diagonal().sum())
    gram_FF.diagonal().add_(weight)
    return torch.linalg.cholesky(gram_FF), weight


def _solve(factor_FF: torch.Tensor, cross_OF: torch.Tensor, old_OF: torch.Tensor, weight: float) -> torch.Tensor:
    """W of least sum |W x - y|^2 + weight * |W - old|^2 over the text, float32; cross is sum y x^T."""
    right_OF = cross_OF + weight * old_OF.to(cross_OF.dtype)
    return torch.cholesky_solve(right_OF.T, factor_FF).T.float()


def _sum(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    part = part if max(part.shape) >= WIDE else part.double()
    return part if total is None else total.add_(part)


def _flat(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, value.shape[-1]).float()


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


def _transposed(model: Layered, name: str) -> bool:
    return type(model.module(name)).__name__ == "Conv1D"


def _as_linear(model: Layered, name: str) -> torch.Tensor:
    weight: torch.Tensor = model.module(name).weight
    return weight.T if _transposed(model, name) else weight
