"""What a checkpoint will be once its vocabulary has another size."""

from __future__ import annotations

from penjing.contract import Estimate

_MEMORY_BYTES = 700e6
"""Python, the counts and one block of rows; the weights are streamed."""


def resized(checkpoint: Estimate, size: int | None, multiple: int) -> Estimate:
    """The estimate of a checkpoint with `size` ids, rows rounded up to `multiple`; unknown where the model or the size is."""
    if size is None or checkpoint.model is None:
        notes = ("size depends on the corpus",) if size is None else ()
        return Estimate(memory_bytes=_MEMORY_BYTES, vocab_size=size, notes=notes)
    from penjing.models import cost
    from penjing.models import family as families

    rows = -(-size // multiple) * multiple
    model = families.of(checkpoint.model).resize(checkpoint.model, vocab=rows)
    parameters = cost.count_parameters(model)
    width = checkpoint.disk_bytes / checkpoint.parameters if checkpoint.disk_bytes and checkpoint.parameters else 4
    return Estimate(memory_bytes=_MEMORY_BYTES, disk_bytes=parameters * width, parameters=parameters, vocab_size=rows,
                    model=model)
