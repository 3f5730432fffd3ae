"""Writes a benchmark's table into its own section of docs/benchmarks.md."""

import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_TITLE = "# Benchmarks\n\nEach section is written by the command that stands in it.\n"


def write_section(name: str, markdown: str) -> None:
    """Puts `markdown` between the marks of the section `name`, which is added where it is new."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else _TITLE
    section = f"{opening}\n{markdown.strip()}\n{closing}"
    pattern = re.compile(re.escape(opening) + ".*?" + re.escape(closing), re.DOTALL)
    text = pattern.sub(lambda _: section, text) if opening in text else f"{text.rstrip()}\n\n{section}\n"
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table, the first column aligned left and the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def processor() -> str:
    """Returns the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def machine() -> str:
    """Returns what the figures were measured on."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"


def draw_by_size(
    path: Path, individual: float, plot: Callable[[Any], None], size: str, accuracy: str
) -> None:
    """Writes an SVG of accuracies in % against bytes; a line across is the fine-tuned models' accuracy.

    plot: draws into the axes. size, accuracy: what the axes say.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flexswitch", "font.size": 11}):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(individual, color="0.5", linewidth=1, linestyle="--", label="the fine-tuned models")
        plot(axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.set_xlabel(size)
        axes.set_ylabel(accuracy)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
