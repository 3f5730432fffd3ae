"""What a merge has learned from examples, as lines and a table of the output's card."""

from collections.abc import Mapping
from typing import Any


def report_lines(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the lines of a report, by their label."""
    lines: dict[str, str] = {}
    if "tuned" in report:
        found = report["tuned"]
        lines["tuned"] = f"{_text(found['chosen'])}, the best of {len(found['scores'])}"
        lines["tuned on"] = f"the {found['split']} split, {_text(found['exemplars'])}"
    return lines | {name: _text(value) for name, value in report.items() if name != "tuned"}


def score_table(report: Mapping[str, Any]) -> str:
    """Returns the scores of all settings that were tried as a table in Markdown, or nothing."""
    if "tuned" not in report:
        return ""
    rows = report["tuned"]["scores"]
    settings, tasks = list(rows[0]["settings"]), list(rows[0]["scores"])
    lines = [[*settings, "average", *tasks], ["---"] * len(settings) + ["---:"] * (1 + len(tasks))]
    for row in rows:
        figures = [row["average"], *row["scores"].values()]
        lines.append([*map(_text, row["settings"].values()), *(f"{figure:.2f}" for figure in figures)])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
