"""The report: one self-contained file that works on an unfinished run and in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from penjing.errors import InputError
from penjing.recipe import runner, schema, source
from penjing.report import figures, render

from ..recipe.conftest import documents, recipe_text  # noqa: F401 - fixtures


@pytest.fixture
def run_dir(recipe_text: str, tmp_path: Path) -> Path:  # noqa: F811
    runner.run(schema.check(source.parse(recipe_text, name="r.yaml")), tmp_path / "run", until="split")
    return tmp_path / "run"


def test_unfinished_run_has_a_report(run_dir: Path) -> None:
    page = render.write_report(run_dir).read_text(encoding="utf-8")
    assert "Not finished" in page and "2 of 3 stages" in page
    assert "sampled drops with their reason" in page and "held_out" in page


def test_page_needs_no_network_and_no_script(run_dir: Path) -> None:
    page = render.write_report(run_dir).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_text_of_documents_cannot_inject_markup(tmp_path: Path, recipe_text: str) -> None:  # noqa: F811
    text = recipe_text.replace("name: small", "name: small\nabout: \"<img src=x onerror=alert(1)>\"")
    runner.run(schema.check(source.parse(text, name="r.yaml")), tmp_path / "run", until="raw")
    page = render.write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "<img" not in page and "&lt;img" in page


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory; expected a directory with run.json"):
        render.write_report(tmp_path)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 2.34), (-3, 1e9), (5, 5)])
def test_ticks_cover_the_range_and_are_few(low: float, high: float) -> None:
    found = figures.ticks(low, high, 5)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 12


def test_line_chart_keeps_every_series_and_skips_holes() -> None:
    chart = figures.line_chart([figures.Series("a", [(0, 1.0), (10, float("nan")), (20, 3.0)], "c-en")],
                               x_label="tokens", y_label="loss", bands=[(0, 20, "stage <one>")])
    assert chart.count("<circle") == 2 and "stage &lt;one&gt;" in chart and "nan" not in chart


def test_page_renders_in_a_browser(run_dir: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    page = render.write_report(run_dir)
    for name, size in (("desk", "1200,1600"), ("phone", "390,1600")):
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--window-size={size}",
             f"--user-data-dir={tmp_path / name}", f"--screenshot={tmp_path / name}.png", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120)
        assert "sampled drops with their reason" in done.stdout
        assert "<svg" in done.stdout
