"""What the code and the documents refer to exists: sections, files, rooms."""

import re

import pytest
from support.doc_blocks import PAGES
from support.imports import ROOT
from test_layout import FLOORS

FOLDERS = ("api", "cli", "codecs", "merging", "recipes", "benchmarks", "examples", "tests")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".yaml") and "__pycache__" not in path.parts
)
# A section of docs/methods.md, several of them, or a section of a paper that is named by its number.
CITATION = re.compile(
    r"(?P<source>docs/methods\.md|arXiv \d{4}\.\d{5},)\s+(?P<sections>§[\d.]*\d(?:(?:, |,? and )§[\d.]*\d)*)"
)


def test_every_citation_of_a_method_names_a_section_of_its_page() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^##+ ([\d.]*\d)\.? ", page, re.MULTILINE))
    assert {"1", "2", "3", "4", "5", "6.4"} <= sections
    cited = set()
    for path in SOURCES:
        text = re.sub(r"\n[# ]*", " ", path.read_text(encoding="utf-8"))
        found = list(CITATION.finditer(text))
        if path.name != "test_references.py":
            assert text.count("§") == sum(each["sections"].count("§") for each in found), path
        for each in found:
            if each["source"] == "docs/methods.md":
                cited |= set(re.findall(r"§([\d.]*\d)", each["sections"]))
    assert cited <= sections
    assert set(re.findall(r"§([\d.]*\d)", page)) <= sections


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()] == []
    named = re.findall(
        r"`((?:api|cli|codecs|merging|recipes|benchmarks|examples|tests|docs)/[\w./]*\w)`", text
    )
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_the_table_of_rooms_is_the_one_that_is_enforced() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w/]+)` \|", text, re.MULTILINE)
    assert {room: int(floor) for floor, room in rows} == FLOORS
    assert [int(floor) for floor, _ in rows] == sorted(FLOORS.values(), reverse=True)
