"""What can go wrong, and the exit code each kind ends with.

A fault is one sentence that a person can act on: what happened, where, what was found, what was expected, what to do.
Exit codes are a contract: 0 done, 1 our bug, 2 recipe or usage, 3 input, 4 a quality gate said no, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path


class PenjingError(Exception):
    """Base of every fault that is reported without a traceback."""

    exit_code = 1


class ConfigError(PenjingError):
    """A recipe, setting or command line that cannot be carried out."""

    exit_code = 2


class InputError(PenjingError):
    """A file, directory or record that is not what the work needs."""

    exit_code = 3


class GateError(PenjingError):
    """A quality gate that said no; everything measured so far is kept."""

    exit_code = 4


class Interrupted(PenjingError):  # noqa: N818 - it is a request that was honoured, not an error
    """Stopped on request; the same command goes on from where it stopped."""

    exit_code = 130


def fault(
    what: str,
    *,
    where: str | Path | None = None,
    found: object | None = None,
    expected: object | None = None,
    fix: str | None = None,
) -> str:
    """One sentence out of the parts of a fault.

    >>> fault("unknown key 'lrr'", where="r.yaml:3", expected="one of lr, seed", fix="did you mean 'lr'?")
    "r.yaml:3: unknown key 'lrr'; expected one of lr, seed; did you mean 'lr'?"
    """
    head = f"{where}: {what}" if where is not None else what
    parts = [head]
    if found is not None:
        parts.append(f"found {found}")
    if expected is not None:
        parts.append(f"expected {expected}")
    if fix is not None:
        parts.append(fix)
    return "; ".join(parts)
