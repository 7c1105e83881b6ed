"""The pages in docs/: errors are quoted as the program says them, options have whole pages."""

import ast
import re

import pytest
from commands import ROOT

DOCS = ROOT / "docs"
OPTIONS = sorted(file for file in (DOCS / "options").glob("*.md") if file.name != "index.md")
HEADINGS = [
    *("Claim", "Equation", "When it helps", "What it costs", "How it differs from the paper"),
]
RESULTS = re.compile(r"\]\([./]*benchmarks/RESULTS\.md#([^)]*)\)")
ERRORS = ("UserError", "ImageError", "TrainingError")


def template(node):
    """The text of a message, with `...` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return "..."


def messages():
    """Every message of an error that the package raises itself."""
    for file in (ROOT / "msun_fastai").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if call and node.func.id in ERRORS and node.args:
                yield re.sub(r"(\.\.\.){2,}", "...", template(node.args[0]))


def test_troubleshooting_quotes_errors_that_there_are():
    quoted = re.findall(r"```output\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(), re.S)
    assert len(quoted) > 15
    there = set(messages())
    assert not [text for text in quoted if text not in there]


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_a_page_of_an_option_says_all_that_it_has_to(file):
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", text, re.M) == HEADINGS
    sections = re.split(r"^## .*\n", text, flags=re.M)[1:]
    assert all(section.strip() for section in sections)
    assert "```text\n" in sections[1]


def test_every_option_is_listed():
    index = (DOCS / "options" / "index.md").read_text(encoding="utf-8")
    assert len(OPTIONS) > 12
    assert {file.name for file in OPTIONS} <= set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))


def test_links_to_sections_of_the_results_are_questions_of_the_study(monkeypatch):
    """The page is written by the study, and may not be there yet."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "reduced_study"))
    from questions import QUESTIONS

    # as GitHub and the site make them of headings
    titles = [f"{question.number}. {question.title}".lower() for question in QUESTIONS]
    anchors = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md"]
    linked = {anchor for page in pages for anchor in RESULTS.findall(page.read_text())}
    assert len(linked) > 5
    assert linked <= anchors
