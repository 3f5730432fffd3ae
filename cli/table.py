"""Tables as lines of text: aligned columns, and what gives way where a table is wider than the screen.

First the headers take more lines, then long names fold behind their dots, and at last the columns are
shown in groups, each behind the first column again. Nothing is cut off.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.cells import cell_len

from flexswitch.cli.printable import printable
from flexswitch.cli.screen import wrapped

_GAP = 2  # columns between two cells
_NARROWEST = 20  # columns that a folded text keeps at least


class Column(NamedTuple):
    """A column. prose: its texts are sentences, which fold in a file or pipe too."""

    header: str
    left: bool
    prose: bool


class Line(NamedTuple):
    """A line of a table. kind: title, header, rule or row."""

    text: str
    kind: str


class Table:
    """Rows of texts below headers."""

    def __init__(self, title: str, columns: Iterable[Column]) -> None:
        self.title = printable(title)
        self.columns = list(columns)
        self.rows: list[list[str]] = []
        self._ruled: set[int] = set()

    def add_row(self, *cells: str) -> None:
        """Adds a row; cells that are not given are empty. Raises: ValueError where there are too many."""
        if len(cells) > len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append([printable(each) for each in cells] + [""] * (len(self.columns) - len(cells)))

    def add_section(self) -> None:
        """Draws a rule before the next row."""
        self._ruled.add(len(self.rows))

    def lines(self, width: int, folds: bool) -> Iterator[Line]:
        """Yields the lines of the table. folds: whether names may fold, so that a row takes several lines."""
        if self.title:
            yield Line(self.title, "title")
        for number, group in enumerate(self._groups(width, folds)):
            if number:
                yield Line("", "row")
            yield from self._group(group)

    def _group(self, widths: dict[int, int]) -> Iterator[Line]:
        """Yields the lines of some columns. widths: of each column, by its number."""
        rule = Line("  ".join("─" * width for width in widths.values()), "rule")
        headers = {each: wrapped(self.columns[each].header, width) for each, width in widths.items()}
        height = max(map(len, headers.values()))
        bottom = {each: [""] * (height - len(lines)) + lines for each, lines in headers.items()}
        yield from (Line(text, "header") for text in self._cells(bottom, widths))
        yield rule
        for number, row in enumerate(self.rows):
            if number in self._ruled:
                yield rule
            folded = {each: _folded(row[each], width) for each, width in widths.items()}
            yield from (Line(text, "row") for text in self._cells(folded, widths))

    def _cells(self, texts: dict[int, list[str]], widths: dict[int, int]) -> Iterator[str]:
        """Yields the lines that hold the lines of each cell beside each other."""
        for number in range(max(map(len, texts.values()))):
            shown = []
            for each, width in widths.items():
                text = texts[each][number] if number < len(texts[each]) else ""
                space = " " * (width - cell_len(text))
                shown.append(text + space if self.columns[each].left else space + text)
            yield (" " * _GAP).join(shown).rstrip()

    def _groups(self, width: int, folds: bool) -> list[dict[int, int]]:
        """Returns the groups of columns that are shown below each other, each with the columns' widths."""
        widths = self._fitted_widths(width, folds)
        if _total(widths) <= width:
            return [widths]
        limit, groups = width, _split(widths, width)
        while limit > 1 and len(balanced := _split(widths, limit - 1)) == len(groups):
            limit, groups = limit - 1, balanced
        longest = max((cell_len(row[0]) for row in self.rows), default=0)
        for group in groups:  # what they leave is the first column's
            group[0] = max(group[0], min(longest, group[0] + width - _total(group)))
        return groups

    def _fitted_widths(self, width: int, folds: bool) -> dict[int, int]:
        """Returns the widths of a table of at most `width` columns, or the least ones."""
        widest = {
            number: max((cell_len(row[number]) for row in self.rows), default=0)
            for number in range(len(self.columns))
        }
        headers = [column.header for column in self.columns]
        for height in range(1, 1 + max(len(header.split()) for header in headers)):
            widths = {each: max(own, _header_width(headers[each], height)) for each, own in widest.items()}
            if _total(widths) <= width:
                return widths
        prose = [number for number, column in enumerate(self.columns) if column.prose]
        names = [number for number, column in enumerate(self.columns) if column.left and not column.prose]
        for foldable in (prose, names if folds else []):
            self._narrow(widths, foldable, width)
        return widths

    def _narrow(self, widths: dict[int, int], foldable: list[int], width: int) -> None:
        """Narrows columns until the table fits, at each step the one by which the rows grow least."""
        lengths = Counter(tuple(cell_len(row[each]) for each in foldable) for row in self.rows)

        def height(narrowed: int) -> int:
            own = [widths[each] - (each == narrowed) for each in foldable]
            return sum(
                count * max(-(-length // each) for length, each in zip(row, own, strict=True))
                for row, count in lengths.items()
            )

        while _total(widths) > width:
            wide = [each for each in foldable if widths[each] > _NARROWEST]
            if not wide:
                return
            widths[min(wide, key=lambda each: (height(each), -widths[each]))] -= 1


def _split(widths: dict[int, int], width: int) -> list[dict[int, int]]:
    """Returns groups of columns that fit into `width`, each with the first column."""
    groups = [{0: widths[0]}]
    for each, own in list(widths.items())[1:]:
        if len(groups[-1]) > 1 and _total(groups[-1]) + _GAP + own > width:
            groups.append({0: widths[0]})
        groups[-1][each] = own
    return groups


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _header_width(header: str, height: int) -> int:
    """Returns the least width at which a header takes at most so many lines."""
    width = max(map(cell_len, header.split()), default=0)
    while len(wrapped(header, width)) > height:
        width += 1
    return width


def _folded(text: str, width: int) -> list[str]:
    """Returns a text in lines of at most `width` columns, which end between words or behind a name's dots.

    >>> _folded("encoder.layer.0.attention.query.weight", 20)
    ['encoder.layer.0.', '  attention.query.', '  weight']
    >>> _folded("a fine-tuned model", 9)
    ['a', 'fine-', '  tuned', 'model']
    """
    lines = []
    for line in wrapped(text, width):
        if cell_len(line) <= width:
            lines.append(line)
            continue
        lines.append("")
        for piece in re.findall(r"[^./_,(-]*[./_,(-]*", line):
            for part in _slices(piece, width - 2):
                if lines[-1].strip() and cell_len(lines[-1] + part) > width:
                    lines.append("  ")
                lines[-1] += part
    return lines


def _slices(text: str, width: int) -> list[str]:
    """Returns a text in parts of at most `width` columns: what has no better place to end."""
    parts = [""]
    for each in text:
        if parts[-1] and cell_len(parts[-1] + each) > width:
            parts.append("")
        parts[-1] += each
    return parts
