"""The page's own files, without a browser: what they weigh, whom they ask, and that no word is missing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import convlens

PAGE = Path(convlens.__file__).parent / "page"
SCRIPTS = sorted(PAGE.rglob("*.js"))
TEXT = {path: path.read_text(encoding="utf-8") for path in [*SCRIPTS, PAGE / "index.html", PAGE / "style.css"]}
WORDS = TEXT[PAGE / "words.js"]


def _said(node: ast.AST) -> str:
    """A text in Python's code, with {} where something is put in; no other node has one."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_said(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_the_static_part_is_small() -> None:
    assert sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file()) < 500_000


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.relative_to(PAGE).as_posix())
def test_nothing_asks_another_host(path: Path) -> None:
    """The only addresses are names of XML's own vocabularies, which nobody fetches."""
    assert {*re.findall(r"https?://[\w./]+|//[\w-]+\.[\w.]+", TEXT[path])} <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", TEXT[path])


def test_every_import_is_a_file_of_the_page() -> None:
    for path in SCRIPTS:
        for name in re.findall(r'from "([^"]+)"', TEXT[path]):
            assert name.startswith("."), f"{path.name} imports {name}"
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"


def test_every_word_is_there_in_both_languages_and_used() -> None:
    entries = re.findall(r'^ +"?([\w.]+)"?: \["((?:[^"\\]|\\.)*)", "((?:[^"\\]|\\.)*)"\]', WORDS, re.M)
    entries += re.findall(r'\b(green|blue): \["(\w+)", "(\w+)"\]', WORDS)
    words = {key: (english, chinese) for key, english, chinese in entries}
    assert len(words) > 200
    for key, (english, chinese) in words.items():
        assert english, key
        assert chinese, key
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), key
    said = "\n".join(text for path, text in TEXT.items() if path.name != "words.js")
    quoted = {*re.findall(r"[\"'`]([\w.]+)[\"'`]", said)}
    stems = {*re.findall(r"[\"'`]?`([\w]+\.)\$\{", said)} | {*re.findall(r"`([\w.]+)\$\{", said)}
    asked = {*re.findall(r'\bsay\("([\w.]+)"', said)}
    assert asked <= words.keys(), asked - words.keys()
    unused = {key for key in words if key not in quoted and not any(key.startswith(stem) for stem in stems)}
    assert not {key for key in unused if not re.search(rf"\.{re.escape(key.partition('.')[2])}\b", said)} - {
        key
        for key in words
        if key.startswith(("window.", "training."))  # put together from the kind of a layer, a part
    }


def test_every_sentence_that_is_translated_is_one_of_the_servers() -> None:
    pairs = re.findall(r'^  \["([^"]+)", "([^"]+)"\],$', TEXT[PAGE / "sentences.js"], re.M)
    assert len(pairs) > 30
    nodes = (
        node for path in PAGE.parent.glob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    said = {_said(node) for node in nodes}
    for english, chinese in pairs:
        assert english in said, english
        assert all(int(place) < english.count("{}") for place in re.findall(r"\{(\d)\}", chinese)), english
        assert re.search("[一-鿿]", chinese), english
