"""The pages: short where they have to be, and every link leads somewhere."""

import pytest

from tests.support.modules import REPOSITORY
from tests.support.pages import anchors, exists, links, pages, prose, python_blocks

PAGE = """# A page

[here](#second-heading-of-2), [there](other.md "title"), [web](https://example.org), `[code](nowhere)`

```python
first = 1
```

## Second heading: of 2

```
[no](link)
```
"""


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(pages()["README.md"].split()) <= 900


@pytest.mark.parametrize("start", ["python3 -m venv", "bash tests/run"])
def test_the_workflow_runs_the_commands_of_the_readme(start: str) -> None:
    (command,) = (line for line in pages()["README.md"].splitlines() if line.startswith(start))
    assert f"run: {command}\n" in (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page: str) -> None:
    lost = [target for target in links(pages()[page]) if not exists(page, target)]
    assert not lost, f"{page} links to {', '.join(lost)}"


def test_links_and_code_are_told_apart() -> None:
    assert links(PAGE) == ["#second-heading-of-2", "other.md"]
    assert anchors(PAGE) == {"a-page", "second-heading-of-2"}
    assert "first" not in prose(PAGE)
    assert python_blocks(PAGE) == [(6, "first = 1\n")]
