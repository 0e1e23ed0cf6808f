"""`penjing`: finds the command, turns faults into one sentence and an exit code.

Only the command asked for is imported, so `--help`, `list`, `check` and `status` stay fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from penjing import __version__, console, lookup
from penjing.errors import PenjingError

COMMANDS = {
    "run": "Run a recipe, or go on with it: finished stages are skipped.",
    "check": "Check a recipe whole and price every stage; runs nothing.",
    "status": "What of a run is done, running, missing.",
    "report": "Write report.html for a run, finished or not.",
    "stage": "Run a single stage by itself.",
    "plan": "Propose a schedule of cuts (`plan prune MODEL --keep 0.35`) to read before anything is cut.",
    "explain": "Every measure, bound and verdict of the cleaning rules for one document.",
    "explain-sample": "Print one training sample as people read it.",
    "list": "What there is: stages, recipes, rules, families, objectives, importance.",
    "inspect": "What a checkpoint or tokenizer is, measured on your text.",
    "generate": "Continue a prompt with a model.",
    "doctor": "What is installed, what is missing, what this machine can do.",
}

_HELP = """usage: penjing [--debug] [--quiet] COMMAND …

Grow a small, fast, Chinese-English language model out of an open base model and raw text.
Start with: penjing run quickstart

commands (`penjing COMMAND --help` says more):
{commands}

options:
  --debug       show the traceback of a fault
  --quiet       no progress on stderr
  --version     print the version
  -h, --help    print this

exit codes: 0 done, 1 a bug in penjing, 2 recipe or usage, 3 input, 4 a quality gate said no, 130 interrupted (resumable)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; leaves through SystemExit with the exit code of the contract."""
    # Before torch is loaded: waiting threads spin for some 20 microseconds, then sleep. Spinning on is several times slower on a busy
    # machine, sleeping at once halves the speed of a small model on a quiet one (6k, 13k and 14k tokens/s: sleep, this, spin).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    rest = list(sys.argv[1:] if arguments is None else arguments)
    debug = quiet = False
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--debug":
            debug = True
        elif option == "--quiet":
            quiet = True
        elif option == "--version":
            print(f"penjing {__version__}")
            sys.exit(0)
        elif option in ("-h", "--help"):
            print(_help(), end="")
            sys.exit(0)
        else:
            _usage(f"no such option '{option}'")
    if not rest:
        print(_help(), end="", file=sys.stderr)
        sys.exit(2)
    console.configure(quiet=quiet)
    sys.exit(_call(rest[0], rest[1:], debug=debug or "--debug" in rest))


def _call(name: str, arguments: list[str], *, debug: bool) -> int:
    if name not in COMMANDS:
        hint = lookup.did_you_mean(name, COMMANDS)
        _usage(f"no such command '{name}'{'; ' + hint if hint else ''}; `penjing --help` lists them")
    import typer

    usage_faults = _click_exception(typer.BadParameter)
    module = importlib.import_module(f"penjing.cli.command_{name.replace('-', '_')}")
    arguments = [item for item in arguments if item != "--debug"]
    try:
        code = module.app(args=arguments, prog_name=f"penjing {name}", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as error:
        return int(error.exit_code)
    except usage_faults as error:
        error.show(sys.stderr)  # type: ignore[attr-defined]
        return 2
    except (typer.Abort, KeyboardInterrupt):
        print("stopped; run the same command again to go on from where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has left
        return 0
    except PenjingError as error:
        if debug:
            raise
        print(str(error), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(f"this is a bug in penjing: {type(error).__name__}: {error} (run again with --debug for the traceback)",
              file=sys.stderr)
        return 1


def _click_exception(kind: type[Exception]) -> type[Exception]:
    """Click's ClickException, wherever this version of typer keeps its click."""
    return next(base for base in kind.__mro__ if base.__name__ == "ClickException")


def _usage(text: str) -> None:
    print(f"penjing: {text}", file=sys.stderr)
    sys.exit(2)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return _HELP.format(commands="\n".join(f"  {name:<{width}}{about}" for name, about in COMMANDS.items()))


if __name__ == "__main__":
    main()
