"""`penjing explain "text" | FILE`: every measure, bound and verdict of the cleaning for one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from penjing.cli.tables import print_table
from penjing.files import open_text_bytes

app = typer.Typer(add_completion=False)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text itself, or a file that holds it.")],
    rule_set: Annotated[str, typer.Option(help="ziya2, gopher, c4, fineweb, fineweb2-zh or a .toml file.")] = "ziya2",
    lang: Annotated[str | None, typer.Option(help="zh or en; found out when not given.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also rules that had nothing to say.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what the cleaning would do with one document, and why."""
    from penjing.data import rules
    from penjing.data.encoding import decode
    from penjing.data.explain import explain as explain_text

    path = Path(text)
    is_file = len(text) < 4096 and "\n" not in text and path.is_file()
    whole = decode(open_text_bytes(path).read())[0] if is_file else text
    found = explain_text(whole, rules=rules.load(rule_set), lang=lang)
    if as_json:
        print(json.dumps({"version": 1, **found.as_json()}, ensure_ascii=False, indent=2))
        return
    print(f"language {found.lang or 'not identified'}: {'kept' if found.kept else 'dropped, ' + found.reason}")
    shown = [line for line in found.lines if everything or line.verdict not in ("ok", "off")]
    print_table(["step", "rule", "name", "measure", "value", "bound", "verdict", "text"],
                [[line.step, line.rule, line.name, line.measure, "" if line.value is None else f"{line.value:.4g}", line.bound,
                  line.verdict, line.text[:60]] for line in (shown or found.lines)])
    if found.kept and found.text != whole:
        print(f"\n{found.text}")
