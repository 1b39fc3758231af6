"""What the two READMEs say, done: their Python runs, their commands and files exist, and they say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convlens.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def code(page: str) -> str:
    return re.search(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index] # a page without its block fails


def test_the_python_of_the_readme_runs(capsys) -> None:
    exec(compile(code("README.md"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert "floor((28 + 2·1 - 3) / 1) + 1 = 28" in lines[3]


def test_both_readmes_have_the_same_code_and_commands() -> None:
    def commands(page: str) -> list[str]:
        text = (ROOT / page).read_text(encoding="utf-8")
        return [line.split("#")[0].strip() for line in text.splitlines() if re.match(r"    (make|convlens) ", line)]

    def bare(text: str) -> str:
        return re.sub(r"#.*", "", text)

    assert bare(code("README.md")) == bare(code("README.zh-CN.md"))
    assert commands("README.md") == commands("README.zh-CN.md")
    assert len(commands("README.md")) == 20


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_exists(page: str, convlens) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    helped = convlens("--help").stdout
    for line in re.findall(r"^    (convlens .*)$", text, re.MULTILINE):
        command = line.split()[1]
        assert re.search(rf"^  {command} ", helped, re.MULTILINE), line
    for recipe in re.findall(r"--recipe ([a-z0-9-]+)", text):
        assert recipe in RECIPES
