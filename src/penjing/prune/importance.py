"""Metrics that look at data: a forward pass over calibration text (for `taylor` also a backward pass).

Each is a function `(context, units) -> scores`: for each unit one number per place, higher stays. All come from one
calibration, which is measured once and kept in `context.work`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from penjing.errors import ConfigError, InputError, fault
from penjing.prune.calibrate import FILE, Calibration, calibrate, hash_samples, load_calibration
from penjing.prune.width import Context, Scores

_LAST: dict[str, Any] = {}
"""The last calibration of this process, so that a metric, a rotation and a refit of one plan measure the model once."""


def activation(context: Context, units: Mapping[str, int]) -> Scores:
    """How large a place's activation is: mean size over a sequence, root of squares over sequences, summed over layers.

    Norm outputs for hidden, what enters the down projection for FFN, each head's output for heads.
    Source: Minitron, arXiv 2407.14679, section 2.2.
    """
    return _scores(calibration_of(context), "activation", units)


def output_energy(context: Context, units: Mapping[str, int]) -> Scores:
    """How much a place adds to what comes next: mean square of the activation times the squared weights that read it.

    For a head the mean square norm of what it writes into the stream. Forward only; the exact error of leaving one place
    out of one projection.
    """
    return _scores(calibration_of(context), "output_energy", units)


def taylor(context: Context, units: Mapping[str, int]) -> Scores:
    """First-order change of the loss without the place: size of activation times gradient, summed over each sequence.

    Holds the whole model and its gradients. Source: Molchanov et al., arXiv 1906.10771; used by LLM-Pruner, arXiv 2305.11627.
    """
    return _scores(calibration_of(context, taylor=True), "taylor", units)


def calibration_of(context: Context, *, taylor: bool = False) -> Calibration:
    """The calibration of the context's checkpoint on its samples: read from `context.work` when it is there, else measured."""
    fingerprint, text = context.checkpoint.fingerprint(), hash_samples(context.samples)
    file = None if context.work is None else context.work / FILE
    if file is not None and file.is_file():
        found = load_calibration(file)
        if found.source == fingerprint and (not context.samples or found.text == text) and (not taylor or "hidden.taylor" in found.arrays):
            return found
    key = fingerprint + text
    if _LAST.get("key") == key and (not taylor or "hidden.taylor" in _LAST["made"].arrays):
        return _LAST["made"]
    if not context.samples:
        raise ConfigError(fault("this metric measures the model and was given nothing to measure it on",
                                fix="give the stage a 'tokens' or 'corpus' input, or use random or magnitude"))
    made = calibrate(context.checkpoint.path, context.samples, taylor=taylor, job=context.job)
    _LAST.update(key=key, made=made)
    if file is not None:
        made.save(file)
    return made


def _scores(calibration: Calibration, metric: str, units: Mapping[str, int]) -> Scores:
    known = calibration.metric(metric)
    found: Scores = {}
    for unit, size in units.items():
        scores = known.get(unit)
        if scores is None and unit.endswith(".kv_head"):  # a group is worth what its query heads are worth together
            heads = known.get(f"{unit.removesuffix('kv_head')}head")
            scores = None if heads is None else heads.reshape(size, -1).sum(1)
        if scores is None or len(scores) != size:
            raise InputError(fault(f"the calibration has no '{metric}' of {unit}", expected=f"{size} numbers",
                                   fix="was it made for another model? measure this one"))
        found[unit] = np.asarray(scores, np.float64)
    return found
