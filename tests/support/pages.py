"""The Markdown pages of the project."""

import re
from functools import cache
from pathlib import Path

from tests.support.modules import FOLDERS, REPOSITORY

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def pages() -> dict[str, str]:
    """The text of every page, by its path from the repository's root."""
    linked = {REPOSITORY / "histocodec" / name for name in FOLDERS}
    paths = [*REPOSITORY.glob("*.md")]
    for folder in (*FOLDERS, "tests"):
        paths += (path for path in (REPOSITORY / folder).rglob("*.md") if not linked & set(path.parents))
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The fenced blocks of Python in a page: the line that each begins at, and its code."""
    return [
        (text.count("\n", 0, match.start(2)) + 1, match[2]) for match in FENCE.finditer(text) if match[1] == "python"
    ]


def prose(text: str) -> str:
    """A page without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """What `#…` may follow a link to a page: its headings, spelt as GitHub spells them."""
    headings = [match[1].strip().lower() for match in HEADING.finditer(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The targets of the links and images in a page, but for those that lead to the web."""
    targets = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose(text))
    return [target for target in targets if not target.startswith(("https://", "http://", "mailto:"))]


def exists(page: str, target: str) -> bool:
    """Whether a link in a page leads to a file or folder, and to a heading where it names one."""
    path, _, anchor = target.partition("#")
    file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    if not file.exists() or not file.resolve().is_relative_to(REPOSITORY.resolve()):
        return False
    return not anchor or (file.suffix == ".md" and anchor in anchors(Path(file).read_text(encoding="utf-8")))
