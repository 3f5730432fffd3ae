"""Writes a benchmark's table into its own section of docs/benchmarks.md."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

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
