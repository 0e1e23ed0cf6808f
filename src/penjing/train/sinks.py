"""Where a run's figures go beside metrics.jsonl: TensorBoard and Weights & Biases' offline files, when asked for and installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penjing.contract import Job
from penjing.errors import ConfigError, fault


class Sinks:
    """Writes a step's numbers to metrics.jsonl and to every writer that was asked for."""

    def __init__(self, job: Job, out: Path, *, wandb: bool = False) -> None:
        self._job = job
        self._board: Any = None
        self._run: Any = None
        if job.metrics is None:
            return  # not the main process, or no record wanted
        if job.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(fault("TensorBoard is asked for and not installed", fix="pip install tensorboard")) from error
            self._board = SummaryWriter(str(out / "tensorboard"))
        if wandb:
            try:
                import wandb as library
            except ImportError as error:
                raise ConfigError(fault("wandb is asked for and not installed", fix="pip install wandb")) from error
            self._run = library.init(mode="offline", dir=str(out), project="penjing")

    def record(self, **figures: Any) -> None:
        """One line for the record; its numbers as curves over the step."""
        self._job.record(**figures)
        step = figures.get("step")
        numbers = {key: value for key, value in figures.items() if isinstance(value, int | float) and key not in ("step", "time_s")}
        if self._board is not None and step is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)
        if self._run is not None:
            self._run.log(numbers, step=step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()
