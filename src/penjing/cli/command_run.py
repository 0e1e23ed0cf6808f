"""`penjing run RECIPE`: the whole pipeline; resumes by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from penjing import console
from penjing.recipe import schema, source
from penjing.rundir import RunDir

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (`penjing list recipes`).")],
    run_dir: Annotated[Path | None, typer.Option(help="Where the run lives. Default: runs/NAME.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="STAGE.key=value, VARIABLE=value, or STAGE=PATH to put an "
                                                   "existing artefact (a model, a corpus) in a stage's place.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    restart_from: Annotated[str | None, typer.Option(help="Discard this stage and all that was made from it first.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for data work. Default: all cores.")] = os.cpu_count() or 1,
    engine: Annotated[str, typer.Option(help="Where data work runs: local, thread, ray or slurm.")] = "local",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
) -> None:
    """Carry out a recipe. Run it again after an interruption: finished stages are skipped, the interrupted one goes on."""
    from penjing.recipe import runner
    from penjing.report import render

    checked = schema.check(source.read(recipe), sets=sets or [])
    place = run_dir or Path("runs") / checked.name
    if checked.replaced:
        console.say(f"not needed and left out: {', '.join(checked.replaced)}")

    def refresh(step: schema.Step, out: Path) -> None:
        if step.output in ("checkpoint", "scores"):
            try:
                render.write_report(place)
            except Exception as error:  # a page that cannot be drawn must not stop hours of work; the last call below does raise
                console.say(f"the report could not be refreshed: {error}")

    outcome = runner.run(checked, place, workers=workers, engine=engine, until=until, restart_from=restart_from,
                         tensorboard=tensorboard, after_stage=refresh)
    report = render.write_report(place)
    seconds = sum(float((RunDir(place).record(name) or {}).get("seconds", 0)) for name in outcome.outputs)
    console.say(f"{len(outcome.ran)} stages run, {len(outcome.skipped)} finished earlier; {seconds:.0f} s of work in all")
    is_model = outcome.result is not None and (outcome.result / "config.json").is_file()
    if outcome.result is not None:
        print(f"{'model' if is_model else 'result'}:  {outcome.result}")
    print(f"report: {report}")
    if is_model:
        console.say(f'try:    penjing generate {outcome.result} "春天"')
