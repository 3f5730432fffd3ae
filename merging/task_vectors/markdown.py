"""Names of files as text of a model card."""

import re


def markdown_text(text: str) -> str:
    r"""Returns a text on one line that Markdown shows as it is, with escapes for what is not visible.

    >>> markdown_text("a|b <i>\x1b")
    'a\\|b \\<i\\>\\\\x1b'
    """
    shown = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", "".join(shown))
