"""The README says what is true: its commands exist, its links lead somewhere, CI runs its test command."""

from __future__ import annotations

import re
from pathlib import Path

from penjing.cli.main import COMMANDS
from penjing.lookup import names
from penjing.recipe import source

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.S)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [match[1].split() for line in lines for match in re.finditer(r"(?:^|&& |/)penjing ((?:[a-z-]+)(?: [^#&|]*)?)", line)]


def test_commands_of_every_page_exist() -> None:
    found = 0
    for page in PAGES:
        for words in commands(page.read_text(encoding="utf-8")):
            assert words[0] in COMMANDS, (page.name, words)
            if words[0] == "stage":
                assert words[1] in names("penjing.stages"), (page.name, words)
            if words[0] in ("run", "check") and not words[1].endswith((".yaml", "RECIPE")):
                assert words[1] in source.shipped(), (page.name, words)
            found += 1
    assert found > 10


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    [line] = re.findall(r"^(python3 -m venv \.venv && .*pytest.*)$", README, re.M)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "-e '.[dev]'" in line and "-e '.[dev]'" in script and re.search(r"^pytest$", script, re.M)
    assert re.search(r"^python3 -m venv \.venv && .*pip install \. && .*penjing run quickstart$", README, re.M)
