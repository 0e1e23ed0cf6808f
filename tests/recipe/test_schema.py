"""A recipe is checked whole: every fault at once, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from penjing.errors import ConfigError
from penjing.recipe import schema, source


def faults(text: str, sets: list[str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        schema.check(source.parse(text, name="r.yaml"), sets=sets or [])
    return str(caught.value).splitlines()


def test_good_recipe_gives_steps_in_order(recipe_text: str, documents: Path) -> None:
    recipe = schema.check(source.parse(recipe_text, name="r.yaml"))
    assert [step.name for step in recipe.steps] == ["raw", "split", "unique"]
    assert recipe.steps[1].inputs == {"corpus": "raw"}
    assert recipe.steps[1].config.seed == 3  # type: ignore[union-attr]
    assert recipe.steps[0].config.sources[0].path == str(documents)  # type: ignore[union-attr]


def test_ten_faults_are_reported_at_once_with_their_lines(documents: Path) -> None:
    text = f"""penjing: 2
name: Bad Name
sede: 7
stages:
  raw:
    kind: colect
  raw-two:
    kind: collect
    sources: [{{name: a, path: {documents}, lnag: en}}]
    max_damage: 7
  split:
    kind: hold-out
    from: raw-tow
    fractoin: 0.2
  late:
    kind: dedup
    from: final
    similarity: [1]
  final:
    kind: dedup
    from: raw-two
    nearr: simhash
result: nothing
"""
    found = faults(text)
    expected = [
        "r.yaml:1: penjing: recipe format; found 2; expected penjing: 1 at the top",
        "r.yaml:2: name: wrong name; found Bad Name; expected lower-case letters, digits and dashes",
        "r.yaml:3: sede: unknown key 'sede'",
        "r.yaml:6: stages.raw.kind: unknown stage kind 'colect'",
        "r.yaml:9: stages.raw-two.sources.0.lnag: unknown key 'lnag'",
        "r.yaml:10: stages.raw-two.max_damage: wrong value; found 7; expected less than or equal to 1",
        "r.yaml:13: stages.split.from: no stage is called 'raw-tow'",
        "r.yaml:14: stages.split.fractoin: unknown key 'fractoin'",
        "r.yaml:17: stages.late.from.corpus: stage 'final' comes later",
        "r.yaml:18: stages.late.similarity: wrong value; found [1]",
        "r.yaml:22: stages.final.nearr: unknown key 'nearr'",
        "r.yaml:23: result: no stage is called 'nothing'",
    ]
    for start in expected:
        assert any(line.replace(".from.corpus:", ".from:" if ".from:" in start else ".from.corpus:").startswith(start)
                   for line in found), (start, found)
    assert len(found) == len(expected)
    assert sum("did you mean" in line for line in found) >= 5


def test_suggestion_names_the_nearest_key(recipe_text: str) -> None:
    [line] = faults(recipe_text.replace("near_min_tokens", "near_min_token"))
    assert line.startswith("r.yaml:17: stages.unique.near_min_token: unknown key 'near_min_token'")
    assert line.endswith("did you mean 'near_min_tokens'?")


def test_duplicate_key_and_broken_yaml_name_the_line() -> None:
    assert faults("penjing: 1\nname: a\nname: b\n") == ["r.yaml:3: not well-formed YAML: found duplicate key \"name\""]
    assert faults("penjing: 1\nstages: [\n")[0].startswith("r.yaml:")


def test_wrong_artefact_is_a_fault(recipe_text: str) -> None:
    text = recipe_text + "  "
    text = text.replace("result: unique", "  bits: {kind: evaluate, from: {models: [unique], held_out: split}}\nresult: unique")
    [line] = faults(text)
    assert "'unique' does not make what 'models' needs; found corpus; expected checkpoint" in line


def test_set_replaces_values_variables_and_stages(recipe_text: str, documents: Path, tmp_path: Path) -> None:
    made = schema.check(source.parse(recipe_text, name="r.yaml"), sets=["split.fraction=0.5", "seed=9"])
    assert made.steps[1].config.fraction == 0.5  # type: ignore[union-attr]
    assert made.steps[1].config.seed == 9  # type: ignore[union-attr]
    [line] = faults(recipe_text, sets=["split.fraction=2"])
    assert line.startswith("--set split.fraction=2: stages.split.fraction: wrong value; found 2")
    [line] = faults(recipe_text, sets=["splt.fraction=0.5"])
    assert line.endswith("did you mean 'split'?")


def test_artefact_in_a_stages_place_leaves_out_what_only_fed_it(recipe_text: str, tmp_path: Path) -> None:
    corpus = tmp_path / "given"
    corpus.mkdir()
    (corpus / "corpus.json").write_text("{}")
    recipe = schema.check(source.parse(recipe_text, name="r.yaml"), sets=[f"split={corpus}"])
    assert [(step.name, step.given) for step in recipe.steps] == [("split", corpus), ("unique", None)]
    assert recipe.replaced == ("raw",)


def test_directory_without_a_model_is_a_fault(tmp_path: Path) -> None:
    text = f"penjing: 1\nname: a\nstages:\n  base: {{kind: given, path: {tmp_path}, as: checkpoint}}\n"
    [line] = faults(text)
    assert line == (f"r.yaml:4: stages.base.path: not a checkpoint; found {tmp_path} without config.json; "
                    "expected a directory with config.json")


def test_scientific_notation_is_a_number() -> None:
    assert source.scalar("1e-5") == 1e-5
    assert source.scalar("no") == "no"


@pytest.mark.parametrize("name", source.shipped())
def test_shipped_recipes_are_well_formed(name: str) -> None:
    read = source.read(name)
    assert read.values["name"] == name and read.values["about"]
