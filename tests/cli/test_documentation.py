"""What README, the pages, CONTRIBUTING and the published schemas say is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from apportion.allocator import Plan
from apportion.sensitivity import Profile

ROOT = Path(__file__).parents[2]
GUIDE = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PAGES = (*GUIDE, "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `allocate` command of README."""
    return re.findall(r"^ {4}(?:pip install \. && )?(allocate .+)$", text_of("README.md"), re.MULTILINE)


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = text_of("README.md") + text_of("docs/export.md")
    examples = re.findall(r"```python\n(.+?)```", pages, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "example", "exec"), names)
    assert "the gap is what is proven" in capsys.readouterr().out
    assert names["logits"].shape == (500, 10)
    assert names["answers"].shape == (64, 10)


def test_every_option_that_the_guide_names_exists(allocate: Any) -> None:
    stages = ((), ("frontier",), ("export",), ("latency",))
    help_text = "".join(allocate(*stage, "--help").out for stage in stages)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "".join(map(text_of, GUIDE))))
    assert options
    assert {option for option in options if option not in help_text} == set()


def test_readme_begins_with_the_command_that_runs_the_embedded_default() -> None:
    assert commands()[0] == "allocate --budget 4b"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_something(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text_of(page))
    beside = (ROOT / page).parent
    files = [link.split("#")[0] for link in links if "://" not in link]
    assert [file for file in files if not (beside / file).exists()] == []


@pytest.mark.parametrize("page", sorted({page for page in GUIDE if page != "README.md"}))
def test_readme_leads_to_every_page_of_the_guide(page: str) -> None:
    assert f"({page}" in text_of("README.md")


@pytest.mark.parametrize(("name", "document"), [("plan", Plan), ("profile", Profile)])
def test_the_published_schema_is_that_of_the_code_and_accepts_a_run(
    finished: Path, name: str, document: type[Plan] | type[Profile]
) -> None:
    published = json.loads(text_of(f"docs/{name}.schema.json"))
    assert published == document.json_schema(), "run: python docs/write_schemas.py"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads((finished / f"{name}.json").read_text()), published)
