"""`penjing`: finds the command, turns faults into one sentence and an exit code.

Only the command asked for is imported, so `--help` and `list` stay fast.
"""

from __future__ import annotations

import sys
from typing import Any

import click
import typer.main
from typer.core import TyperGroup

from penjing import __version__, lookup
from penjing.errors import PenjingError

COMMANDS = {
    "run": "Run a recipe, or go on with it: finished stages are skipped.",
    "check": "Check a recipe whole and price every stage; runs nothing.",
    "status": "What of a run is done, running, missing.",
    "report": "Write report.html for a run, finished or not.",
    "stage": "Run a single stage by itself.",
    "plan": "Propose a plan (`plan prune`) that a person can read before anything is cut.",
    "list": "What there is: stages, recipes, rules, families, objectives, importance, tasks, models.",
    "inspect": "What a checkpoint or tokenizer is, measured on your text.",
    "explain": "Every measure, bound and verdict of the cleaning rules for one document.",
    "explain-sample": "Print one training sample as people read it.",
    "generate": "Continue a prompt with a model.",
    "doctor": "What is installed, what is missing, what this machine can do.",
}


class _Commands(TyperGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = lookup.module("penjing.cli", f"command-{name}", what="command")
        command = typer.main.get_command(module.app)
        command.name = name
        command.short_help = COMMANDS[name]
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            hint = lookup.did_you_mean(args[0], COMMANDS)
            ctx.fail(f"no such command '{args[0]}'{'; ' + hint if hint else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="penjing")
@click.option("--debug", is_flag=True, help="Show the traceback of a fault.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def penjing(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Grow a small, fast, Chinese-English language model out of an open base model and raw text."""
    from penjing import console

    console.configure(quiet=quiet)
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit 0 done, 1 our bug, 2 recipe or usage, 3 input, 4 a gate said no, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        penjing.main(args=arguments, prog_name="penjing", standalone_mode=False)
        code = 0
    except PenjingError as error:
        if debug:
            raise
        print(str(error), file=sys.stderr)
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("stopped; run the same command again to go on from where it was", file=sys.stderr)
        code = 130
    except click.ClickException as error:
        error.show(sys.stderr)
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:
        if debug:
            raise
        print(f"this is a bug in penjing: {type(error).__name__}: {error} (run again with --debug for the traceback)",
              file=sys.stderr)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
