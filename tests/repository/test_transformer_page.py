"""docs/transformer.md: its links to code hold, and its figures are those that the program draws."""

import re

import pytest

from benchmarks.figures.__main__ import FIGURES
from benchmarks.figures.links import LINK, PAGE, line_of, renewed

TEXT = PAGE.read_text(encoding="utf-8")
SOURCE = '''"""A module."""

SIZE: int = 3


class Part:
    field: int

    @property
    def length(self) -> int:
        return 1


def part() -> None: ...
'''


@pytest.mark.parametrize(
    ("name", "line"), [("SIZE", 3), ("Part", 6), ("Part.field", 7), ("Part.length", 10), ("part", 14)]
)
def test_the_line_of_a_name_is_where_it_is_defined(name: str, line: int) -> None:
    assert line_of(SOURCE, name) == line


@pytest.mark.parametrize("name", ["Part.width", "other", "part.field", "SIZE.field"])
def test_a_name_that_is_not_defined_is_an_error(name: str) -> None:
    with pytest.raises(LookupError):
        line_of(SOURCE, name)


def test_links_lead_to_the_lines_that_define_their_names() -> None:
    assert len(LINK.findall(TEXT)) > 25
    assert renewed(TEXT, PAGE.parent) == TEXT, "python -m benchmarks.figures.links sets the lines anew"


def test_every_link_to_code_names_what_it_leads_to() -> None:
    assert len(re.findall(r"\]\([\w./-]+\.py\b", TEXT)) == len(LINK.findall(TEXT))


def test_other_links_lead_to_files_and_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert (PAGE.parent / path).exists(), target
        assert path or anchor in headings, target


def test_the_page_shows_the_figures_that_are_drawn() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(pictures/transformer-(\w+)\.png\)", TEXT)
    assert sorted(shown) == sorted(FIGURES)
    for name in shown:
        assert (PAGE.parent / "pictures" / f"transformer-{name}.png").stat().st_size < 150_000
