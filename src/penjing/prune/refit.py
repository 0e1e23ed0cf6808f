"""Least squares instead of training: the projections of a cut model fitted to the uncut one, in closed form.

Both models run over the same text, abreast, one layer of each in memory. From the first norm to the head, what stays is
fitted before what follows sees it, so that later fits make up for what earlier ones could not:

- what reads a norm (q, k, v, gate, up, the head) is fitted so that, fed with the cut model's normed stream, it gives what
  the uncut projection gives on the uncut stream; this contains any correction of the norm's scale;
- what writes into the stream (o, down) is fitted so that the cut stream after it is the uncut stream in the cut's
  coordinates: it also makes up for the error that came in, and for layers that were dropped behind it.

Each fit is a ridge regression towards the weights it replaces, so little text cannot do much harm.

In memory are the weights that run between two stops (an attention or an FFN of either model), the stream of all tokens in
both models, what enters one projection, and one Gram matrix. The cut model is never written before it is fitted: its
weights are cut when they are read, and the fitted ones wait on the disk (`arrays.Store`) until the plan is carried out.

Legend: T tokens, D hidden of the source, k hidden of the cut model, F inputs of a projection, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from penjing import console
from penjing.contract import Job
from penjing.errors import ConfigError, InputError, Interrupted, fault
from penjing.models import axes
from penjing.prune.arrays import Store, StoredArray
from penjing.prune.calibrate import Calibration, batches_of
from penjing.prune.cut import CutView
from penjing.prune.importance import calibration_of
from penjing.prune.layerwise import Layered, Passes, give_back
from penjing.prune.plan import Operation, PruningPlan, source_names, unit_sizes, with_operations
from penjing.prune.rotation import basis_of, head_factor
from penjing.prune.width import Context

RIDGE = 0.1
"""Weight of the old weights in a fit, times inputs per token of text, relative to the mean square of the inputs: with 100 tokens
for each input 0.001, which was best in `bench/prune_quality.py`; with few tokens the old weights count for more."""
WIDE = 8192
"""Inputs from which on sums are float32, to hold them in memory."""
BLOCK = 1024
"""Rows of a matrix that are worked on at a time."""
TOLERANCE = 1e-3


def refit(plan: PruningPlan, context: Context, *, ridge: float = RIDGE, readers: bool = True, writers: bool = True,
          rows: int = 8, streamed: bool | None = None, job: Job | None = None) -> PruningPlan:
    """The plan with every refitted weight as a `replace` operation, whose array lies on the disk (in `context.work`).

    ConfigError without calibration samples; InputError when the architecture's stream is not the plain sum of what its
    projections write; Interrupted when the job is asked to stop.
    """
    if not context.samples:
        raise ConfigError(fault("a refit needs calibration text", fix="give the stage a 'tokens' or 'corpus' input"))
    calibration = calibration_of(context)
    settings = context.settings.get("refit", {})
    fit = _Fit(plan, context, calibration, ridge=float(settings.get("ridge", ridge)), rows=rows, streamed=streamed,
               job=job or Job())
    found = fit.run(readers=bool(settings.get("readers", readers)), writers=bool(settings.get("writers", writers)))
    return with_operations(plan, {name: [Operation("replace", array=value)] for name, value in found.items()})


class _Side:
    """A model, its passes, and the weights it reads and gives back on the way to a stop."""

    def __init__(self, model: Layered, batches: Sequence[Any], stops: Sequence[str]) -> None:
        self.model = model
        self.passes = Passes(model.model, model.forward, batches, stops)
        self._hooks = model.on_demand()

    def to(self, weight: str, visit: Any = None) -> None:
        """Take every pass to the module of `weight`."""
        self.passes.to(_module(weight), visit)
        self.model.release_used()

    def close(self) -> None:
        self.passes.close()
        for hook in self._hooks:
            hook.remove()


class _Fit:
    def __init__(self, plan: PruningPlan, context: Context, calibration: Calibration, *, ridge: float, rows: int,
                 streamed: bool | None, job: Job) -> None:
        self.ridge = ridge
        self.plan = plan
        self.job = job
        self.old_name = source_names(plan)
        self.new_name = {old: new for new, old in self.old_name.items()}
        self.calibration = calibration
        self.table = plan.family.tensors(plan.source_config)
        self.sizes = unit_sizes(plan.source_config)
        self.turned = any(item.kind == "map" for items in plan.operations.values() for item in items)
        self.basis_kD = torch.from_numpy(np.ascontiguousarray(basis_of(plan))) if self.turned else torch.zeros(0)
        norms = [name for name in calibration.order if name in calibration.readers and name in self.new_name]
        first = next((place for place, name in enumerate(norms) if calibration.readers[name]), 0)
        self.norms = norms[first:]  # a norm of the embeddings (BLOOM) comes before the stream begins
        self.gaps = self._gaps(calibration.order)
        teacher = Layered(context.checkpoint.path, streamed=streamed)
        student = Layered(CutView(plan, context.checkpoint), streamed=streamed)
        batches = batches_of(teacher.config, context.samples, rows)
        self.tokens = sum(batch["input_ids"].numel() for batch in batches)
        writers = [self.new_name[name] for gap in self.gaps for name in gap]
        self.teacher = _Side(teacher, batches, [_module(name) for name in self.norms])
        self.student = _Side(student, batches, [_module(name) for name in [*map(self.new_name.__getitem__, self.norms), *writers]])
        self.found: dict[str, StoredArray] = {}
        self.store = Store(context.work)

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

    def run(self, *, readers: bool, writers: bool) -> dict[str, StoredArray]:
        try:
            with console.bar("refit", total=len(self.norms), unit="norms") as bar, torch.inference_mode():
                full: dict[int, torch.Tensor] = {}
                self.teacher.to(self.norms[0], full.__setitem__)
                for place, norm in enumerate(self.norms):
                    if self.job.stop():
                        raise Interrupted("stopped while refitting; the same command measures and fits again from the start")
                    stream: dict[int, torch.Tensor] = {}
                    self.student.to(self.new_name[norm], stream.__setitem__)
                    if place == 0:
                        self.teacher.model.release_embeddings()
                        self.student.model.release_embeddings()
                    if readers:
                        self._fit_readers(norm, full, stream)
                    if place + 1 < len(self.norms):
                        full = self._next_gap(place, full, stream, writers=writers)
                    bar.advance()
        finally:
            self.teacher.close()
            self.student.close()
        return self.found

    def _next_gap(self, place: int, full: dict[int, torch.Tensor], stream: dict[int, torch.Tensor], *,
                  writers: bool) -> dict[int, torch.Tensor]:
        """Take the uncut model to the next norm and fit what the cut one writes on the way there."""
        gap = self.gaps[place]
        checked = place == 0 and self._neighbours(0)
        before = full[0] if checked else None
        full.clear()  # the passes hold it as long as they need it
        written, first = self._watch_teacher(gap)
        after: dict[int, torch.Tensor] = {}
        self.teacher.to(self.norms[place + 1], after.__setitem__)
        self._unwatch()
        if before is not None:
            self._check_sum(before, after[0], first)
        first.clear()
        if writers:
            self._fit_writers(gap, after, stream, written)
        return after

    # ------------------------------------------------------------------------------------------------------- readers

    def _fit_readers(self, norm: str, full: Mapping[int, torch.Tensor], stream: Mapping[int, torch.Tensor]) -> None:
        teacher = self.teacher.model.module(norm)
        student = self.student.model.module(self.new_name[norm])
        gram_kk, cross_Dk = None, None
        for number in full:
            x_TD, x_Tk = _flat(teacher(full[number])), _flat(student(stream[number]))
            gram_kk = _add_product(gram_kk, x_Tk, x_Tk)
            cross_Dk = _add_product(cross_Dk, x_TD, x_Tk)
        assert gram_kk is not None and cross_Dk is not None
        factor_kk, weight = _factor(gram_kk, self.ridge / self.tokens)
        # W_new = W_uncut cross (gram + w)^-1 + W_cut w (gram + w)^-1: the two matrices serve every reader of the norm, and what is
        # left is a product, for which float32 is enough
        from_full_Dk = _by_blocks(cross_Dk, factor_kk)
        from_cut_kk = _by_blocks(weight * torch.eye(len(factor_kk), dtype=factor_kk.dtype), factor_kk)
        del factor_kk, cross_Dk
        for old in self.calibration.readers[norm]:
            if old in self.new_name or self._is_head(old):
                self._fit_reader(self.new_name.get(old, old), old, from_full_Dk, from_cut_kk)

    def _fit_reader(self, new: str, old: str, from_full_Dk: torch.Tensor, from_cut_kk: torch.Tensor) -> None:
        rows = None
        source, transposed = self.teacher.model, _transposed(self.teacher.model, old)
        if old in self.table:
            label = self.table[old].axes[1 if transposed else 0]
            rows = axes.gather(label, self.sizes, self.plan.keep)
        else:  # a head that the rotation gave a model without one
            source, old = self.teacher.model, self.old_name[new]
        scale = head_factor(self.plan) if self.table[old].layer is None else 1.0
        whole = torch.from_numpy(source.read(old)).T if transposed else None

        def fitted_bk(start: int, old_bk: torch.Tensor) -> torch.Tensor:
            stop = start + len(old_bk)
            here = np.arange(start, stop) if rows is None else rows[start:stop]
            weight_bD = torch.from_numpy(source.read(old, here)) if whole is None else whole[torch.from_numpy(here)]
            return scale * (weight_bD @ from_full_Dk) + old_bk @ from_cut_kk

        self._put(new, fitted_bk)

    def _is_head(self, name: str) -> bool:
        """A tied head is not fitted: it would change the input embedding too. An untied one is."""
        return name in self.plan.family.tensors(self.plan.target_config)

    # ------------------------------------------------------------------------------------------------------- writers

    def _watch_teacher(self, gap: Sequence[str]) -> tuple[dict[str, dict[int, torch.Tensor]], dict[str, torch.Tensor]]:
        """What the uncut writers of a gap write: in the cut's coordinates where more than one writes, and of the first batch
        as it is."""
        written: dict[str, dict[int, torch.Tensor]] = {name: {} for name in gap}
        first: dict[str, torch.Tensor] = {}
        count = dict.fromkeys(gap, 0)

        def watch(name: str, out: torch.Tensor) -> None:
            first.setdefault(name, _flat(out))
            if len(gap) > 1:
                written[name][count[name]] = self._turn(_flat(out))
            count[name] += 1

        self._hooks = [self.teacher.model.module(name).register_forward_hook(lambda m, a, out, name=name: watch(name, out))
                       for name in gap]
        return written, first

    def _unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _turn(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The uncut stream in the cut's coordinates [T, k]."""
        if self.turned:
            return x_TD @ self.basis_kD.T
        places = self.plan.keep.get("hidden")
        return x_TD if places is None else x_TD[:, torch.from_numpy(places)]

    def _neighbours(self, place: int) -> bool:
        """Whether nothing of the source was dropped between a norm and the next."""
        order = self.calibration.order
        first, last = order.index(self.norms[place]), order.index(self.norms[place + 1])
        return all(name in self.new_name for name in order[first:last])

    def _check_sum(self, before: torch.Tensor, after: torch.Tensor, written: Mapping[str, torch.Tensor]) -> None:
        total = _flat(before) + sum(written.values(), torch.zeros(()))
        error = float((total - _flat(after)).norm() / _flat(after).norm())
        if error > TOLERANCE:
            raise InputError(fault(f"the stream of {self.plan.family.model_type} is not the plain sum of what its projections "
                                   "write, so they cannot be refitted", found=f"relative difference {error:.3g}",
                                   fix="cut without refit"))

    def _fit_writers(self, gap: Sequence[str], full: Mapping[int, torch.Tensor], stream: dict[int, torch.Tensor],
                     written: Mapping[str, dict[int, torch.Tensor]]) -> None:
        before = {number: _flat(value) for number, value in stream.items()}
        for place, old in enumerate(gap):
            new = self.new_name[old]
            gram_FF, cross_kF = None, None
            inputs: dict[int, torch.Tensor] = {}
            self.student.to(new, inputs.__setitem__)
            module = self.student.model.module(new)
            bias = self._bias(new)
            last = place + 1 == len(gap)
            for number, value in inputs.items():
                a_TF = _flat(value)
                target_Tk = self._turn(_flat(full[number])) - before[number] if last else written[old].pop(number)
                gram_FF = _add_product(gram_FF, a_TF, a_TF)
                cross_kF = _add_product(cross_kF, target_Tk - bias, a_TF)
            assert gram_FF is not None and cross_kF is not None
            factor_FF, weight = _factor(gram_FF, self.ridge / self.tokens)
            del gram_FF
            self._put(new, partial(_ridge, cross_kF, factor_FF, weight))
            for number, value in inputs.items() if not last else ():
                before[number] = before[number] + _flat(module(value))

    def _bias(self, weight: str) -> torch.Tensor:
        name = f"{_module(weight)}.bias"
        here = name in self.student.model.table
        return torch.from_numpy(self.student.model.read(name)) if here else torch.zeros(())

    # ------------------------------------------------------------------------------------------------------- solution

    def _put(self, new: str, fitted_bF: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        """A new weight from `fitted_bF(first row, those rows of the old one)`, block by block."""
        model = self.student.model
        transposed = _transposed(model, new)
        old_OF = torch.from_numpy(model.read(new))
        old_OF = old_OF.T if transposed else old_OF
        shape = tuple(old_OF.shape)

        def rows() -> Iterator[np.ndarray]:
            for start in range(0, shape[0], BLOCK):
                yield fitted_bF(start, old_OF[start : start + BLOCK]).numpy()

        blocks = [np.concatenate(list(rows())).T] if transposed else rows()
        dtype = "BF16" if model.dtype(new) == "BF16" else "F32"
        self.found[new] = self.store.add(new, shape[::-1] if transposed else shape, blocks, dtype=dtype)
        model.change(new, self.found[new])
        if model.streamed:
            give_back()


def _ridge(cross_OF: torch.Tensor, factor_FF: torch.Tensor, weight: float, start: int, old_bF: torch.Tensor) -> torch.Tensor:
    """Rows of the W of least sum |W x - y|^2 + weight * |W - old|^2 over the text; cross is sum y x^T."""
    right_bF = cross_OF[start : start + len(old_bF)] + weight * old_bF.to(cross_OF.dtype)
    return _substitute(factor_FF, right_bF).float()


def _by_blocks(right_OF: torch.Tensor, factor_FF: torch.Tensor) -> torch.Tensor:
    """right @ (gram + w)^-1 in float32."""
    return torch.cat([_substitute(factor_FF, part).float() for part in right_OF.split(BLOCK)])


def _factor(gram_FF: torch.Tensor, ridge: float, *, block: int = BLOCK) -> tuple[torch.Tensor, float]:
    """Cholesky factor of gram + w I (its lower triangle) and w = ridge * trace(gram), in the memory of `gram_FF`.

    Where float32 sums leave the matrix indefinite, w is raised tenfold until it is not.
    """
    weight = ridge * float(gram_FF.diagonal().sum())
    starts = range(0, len(gram_FF), block)
    corners = [gram_FF[start : start + block, start : start + block].clone() for start in starts]
    for _ in range(4):
        gram_FF.diagonal().add_(weight)
        try:
            return _cholesky(gram_FF, block), weight
        except torch.linalg.LinAlgError:
            console.say(f"  refit: {len(gram_FF)} inputs are not independent enough for the ridge; ten times as strong for them")
            weight *= 10
            for start, corner in zip(starts, corners, strict=True):  # above the corners is still what is lost below them
                gram_FF[start : start + block, start : start + block] = corner
                gram_FF[start + block :, start : start + block] = gram_FF[start : start + block, start + block :].T
    raise InputError(fault("what the cut model gives cannot be fitted", found="values that are not finite, or all the same",
                           fix="cut without refit, or give other text"))


def _cholesky(matrix_FF: torch.Tensor, block: int) -> torch.Tensor:
    """The factor in the lower triangle of the matrix itself; what is above the diagonal blocks stays."""
    size = len(matrix_FF)
    for start in range(0, size, block):
        stop = min(start + block, size)
        corner = torch.linalg.cholesky(matrix_FF[start:stop, start:stop])
        matrix_FF[start:stop, start:stop] = corner
        for low in range(stop, size, block):
            high = min(low + block, size)
            part = torch.linalg.solve_triangular(corner, matrix_FF[low:high, start:stop].T, upper=False).T
            matrix_FF[low:high, start:stop] = part
        for low in range(stop, size, block):
            high = min(low + block, size)
            matrix_FF[low:, low:high].addmm_(matrix_FF[low:, start:stop], matrix_FF[low:high, start:stop].T, alpha=-1)
    return matrix_FF


def _substitute(factor_FF: torch.Tensor, right_bF: torch.Tensor) -> torch.Tensor:
    """right @ (L L^T)^-1 with L the lower triangle of `factor_FF`, which is not copied."""
    half_Fb = torch.linalg.solve_triangular(factor_FF, right_bF.T, upper=False)
    return torch.linalg.solve_triangular(factor_FF.T, half_Fb, upper=True).T


def _add_product(total: torch.Tensor | None, x_TA: torch.Tensor, y_TB: torch.Tensor) -> torch.Tensor:
    """total + x^T y: products in float32, sums over batches in float64 unless they would be too large for it."""
    wide = max(x_TA.shape[1], y_TB.shape[1]) >= WIDE
    if total is None:
        total = torch.zeros(x_TA.shape[1], y_TB.shape[1], dtype=torch.float32 if wide else torch.float64)
    for start in range(0, x_TA.shape[1], BLOCK):
        x_bT = x_TA[:, start:start + BLOCK].T
        if wide:
            total[start:start + BLOCK].addmm_(x_bT, y_TB)
        else:
            total[start:start + BLOCK].add_(x_bT @ y_TB)
    return total


def _flat(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, value.shape[-1]).float()


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


def _transposed(model: Layered, name: str) -> bool:
    return type(model.module(name)).__name__ == "Conv1D"
