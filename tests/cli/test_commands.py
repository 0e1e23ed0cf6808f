"""Commands: light to start, faults in one sentence, exit codes as promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def penjing(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "penjing", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("arguments", [["--help"], ["list", "stages"], ["list", "recipes"], ["check", "quickstart"],
                                       ["status", "{run}"], ["run", "--help"], ["list", "families"]])
def test_light_commands_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "x", "about": "", "seed": 0, "result": None, "sets": [], "stages": []}))
    script = (
        "import sys\nfrom penjing.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leave:\n    assert not leave.code, leave.code\n"
        "heavy = [name for name in ('torch', 'transformers') if name in sys.modules]\nassert not heavy, heavy\n"
    )
    filled = [item.replace("{run}", str(tmp_path)) for item in arguments]
    done = subprocess.run([sys.executable, "-c", script, *filled], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_unknown_command_and_option_exit_with_2() -> None:
    wrong = penjing("chek")
    assert wrong.returncode == 2 and "no such command 'chek'; did you mean 'check'?" in wrong.stderr
    assert penjing("run", "quickstart", "--no-such-option").returncode == 2
    assert penjing().returncode == 2


def test_unknown_recipe_is_one_sentence_and_2() -> None:
    wrong = penjing("check", "quickstrt")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].endswith("did you mean 'quickstart'?")


def test_directory_without_a_model_is_one_sentence_and_3(tmp_path: Path) -> None:
    wrong = penjing("generate", str(tmp_path), "x")
    assert wrong.returncode == 3
    assert wrong.stderr.strip() == f"{tmp_path}: not a model; expected a directory with config.json and weights"
    assert penjing("report", str(tmp_path)).returncode == 3


def test_tables_also_come_as_json() -> None:
    for arguments in (["list", "stages"], ["check", "quickstart"], ["doctor"]):
        done = penjing(*arguments, "--json")
        assert json.loads(done.stdout)["version"] == 1, done.stderr


def test_every_stage_shows_its_inputs_and_settings_each_with_a_sentence() -> None:
    from penjing import lookup
    from penjing.cli.settings import settings_of

    for kind in lookup.names("penjing.stages"):
        rows = settings_of(lookup.module("penjing.stages", kind, what="stage").Config)
        assert not [row.name for row in rows if not row.about], kind
        assert len({row.name for row in rows}) == len(rows)
    shown = penjing("list", "stages", "collect").stdout
    assert "sources[].path: text  (required)" in shown and "max_damage: number = 0.05" in shown
    assert json.loads(penjing("list", "stages", "train", "--json").stdout)["inputs"]["tokens"] == "tokens (one or several)"
    assert penjing("list", "stages", "no-such").returncode == 2
    assert penjing("list", "rules", "x").returncode == 2


def test_a_stage_called_without_what_it_needs_says_where_to_look(tmp_path: Path) -> None:
    wrong = penjing("stage", "grow-vocab", "--out", str(tmp_path / "x"))
    assert wrong.returncode == 2 and "penjing list stages grow-vocab" in wrong.stderr and "--input name=PATH" in wrong.stderr


def test_help_of_every_command_works() -> None:
    from penjing.cli.main import COMMANDS

    for name in COMMANDS:
        done = penjing(name, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout, (name, done.stderr)
