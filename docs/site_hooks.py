"""Hooks of the documentation's site: pages from elsewhere in the repository, and pages made from the program.

Links are written for the repository, where people read the same pages. A link to a file that is no page
of the site becomes the file's name.
"""

import posixpath
import re
import shutil
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_reference import api_page, commands_page, settings_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "codecs/format/FORMAT.md": "format.md",
}  # a path in the repository -> its page
MADE = {"commands.md": commands_page, "settings.md": settings_page, "api.md": api_page}
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)")


def on_startup(**_: object) -> None:
    """Lays the package out as mkdocstrings reads it: its folders under the names of the packages."""
    tree = ROOT / "build" / "docs-sources"
    shutil.rmtree(tree, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, folder in project["tool"]["setuptools"]["package-dir"].items():
        place = tree.joinpath(*package.split("."))
        shutil.copytree(ROOT / folder, place, ignore=lambda *_: ["__pycache__"], dirs_exist_ok=True)
    for place in (tree / "flexswitch").rglob("*/"):
        (place / "__init__.py").touch()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the files with the pages that do not lie in docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for page, text in MADE.items():
        files.append(File.generated(config, page, content=text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page whose links lead where the files of the repository are on the site."""
    if page.file.src_uri in MADE:
        return markdown
    sources = {page: path for path, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return linked(markdown, source, page.file.src_uri)


def linked(markdown: str, source: str, page: str) -> str:
    """Returns the text of a page with its links changed; source: its path in the repository."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES or path.startswith("docs/"):
            found = PAGES.get(path, path.removeprefix("docs/"))
            return f"[{text}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor})"
        if (ROOT / path).exists():
            return text if text.strip("`") == path else f"{text} (`{path}`)"
        return match[0]  # found to be broken by mkdocs

    return _LINK.sub(link, markdown).replace("](docs/", "](")  # pictures of the README
