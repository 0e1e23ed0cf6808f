"""A plain Hugging Face checkpoint out of the saved state of a training run that has not ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from penjing.config import Config as Base
from penjing.contract import CHECKPOINT, FILES, Estimate, Inputs, Job

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT, "state": FILES}
OUTPUT = CHECKPOINT


class Config(Base):
    """`checkpoint` is what the run started from, `state` the folder of that name in the run's output."""

    step: int | None = Field(None, ge=0)
    """Which saved step; default the newest that reads back well."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """The weights of the state, with tokenizer and what was not trained from the checkpoint the run started from."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from penjing.train.exporting import export_state

    return {"step": export_state(inputs["state"], out, source=inputs["checkpoint"], step=config.step)}


def price(config: Config, inputs: Inputs) -> Estimate:
    """The size of the checkpoint the run started from, in 32 bits; twice that in memory."""
    source = inputs["checkpoint"]
    size = None if source.parameters is None else 4.0 * source.parameters
    return Estimate(disk_bytes=size, memory_bytes=None if size is None else 2 * size, parameters=source.parameters,
                    vocab_size=source.vocab_size, model=source.model)
