"""The parts of a report's page: its frame, tiles, cards and tables, and how they look in light and in dark."""

from collections.abc import Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # the page loads nothing, and runs nothing
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f6f4; --card: #ffffff; --ink: #1d1b22; --soft: #6b6676; --line: #e4e1ea; --first: #5a48b8;
  --second: #d0627f; --third: #2f7f86; --fourth: #b07a1e; --bad: #c2384a; --good: #3f8a5f; --shadow: 0 1px 3px #0001;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16151a; --card: #211f27; --ink: #ece9f2; --soft: #a39db1; --line: #37333f; --first: #a597f3;
    --second: #f08fa8; --third: #6cc3c9; --fourth: #e0b15c; --bad: #ff7d8b; --good: #6fca95; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1220px; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; }
.about, .lead, .note { color: var(--soft); margin: .3rem 0 1rem; overflow-wrap: anywhere; }
.note { font-size: .85rem; margin: .4rem 0 0; }
a { color: var(--first); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.tile, .card { background: var(--card); border-radius: 10px; box-shadow: var(--shadow); padding: .9rem 1rem; }
.tile span { display: block; color: var(--soft); font-size: .82rem; }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; white-space: nowrap; letter-spacing: -0.01em; }
.tile.bad b, .value.bad { color: var(--bad); }
.states { display: flex; height: 12px; border-radius: 6px; overflow: hidden; background: var(--line); }
.states span { display: block; min-width: 2px; }
.states .done { background: var(--good); } .states .failed { background: var(--bad); }
.states .running { background: var(--first); } .states .planned { background: var(--line); }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem;
  margin-top: 1.4rem; }
svg { display: block; width: 100%; height: auto; font-size: 11.5px; }
svg text { fill: var(--soft); }
svg .name { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--line); } .base { stroke: var(--soft); }
.guide { stroke: var(--soft); stroke-dasharray: 2 4; opacity: .8; }
.mark { stroke: var(--bad); stroke-dasharray: 5 3; } svg .mark-name { fill: var(--bad); }
.fill.s0 { fill: var(--first); } .fill.s1 { fill: var(--second); } .fill.bad { fill: var(--bad); }
.point { fill: var(--first); fill-opacity: .55; } .point.s1 { fill: var(--bad); fill-opacity: .7; }
.fill:hover, .point:hover { opacity: .7; stroke: var(--ink); }
.line { fill: none; stroke-width: 2; } .line.s0 { stroke: var(--first); } .line.s1 { stroke: var(--second); }
.line.s2 { stroke: var(--third); } .line.s3 { stroke: var(--fourth); }
.nothing { color: var(--soft); padding: 3rem 1rem; text-align: center; margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 1rem; }
.chunk { margin: 0; background: var(--card); border-radius: 10px; box-shadow: var(--shadow); overflow: hidden;
  display: grid; grid-template-columns: 1fr 1fr; gap: 2px; align-content: start; }
.chunk img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; }
.chunk .nothing { grid-column: 1 / -1; font-size: .85rem; }
.chunk figcaption { grid-column: 1 / -1; padding: .6rem .9rem .8rem; display: flex; flex-wrap: wrap; gap: 0 .8rem;
  justify-content: space-between; }
.chunk b { overflow-wrap: anywhere; font-weight: 600; } .chunk small { flex-basis: 100%; color: var(--soft); }
.scroll { overflow-x: auto; background: var(--card); border-radius: 10px; box-shadow: var(--shadow); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .5rem .9rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th, td:not(:last-child) { white-space: nowrap; } tr:last-child td { border-bottom: 0; }
@media print { body { background: none; } .tile, .card, .chunk { break-inside: avoid; border: 1px solid var(--line); } }
"""


def page(title: str, about: str, content: str, style: str) -> str:
    """A whole page in HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="about">{escape(about)}</p></header>{content}</body></html>\n'
    )


def tile(name: str, value: str, note: str, *, bad: bool = False) -> str:
    """One figure, large, with its name above and a note below."""
    return (
        f'<div class="tile{" bad" if bad else ""}"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note) or '&nbsp;'}</span></div>"
    )


def card(title: str, content: str, note: str = "") -> str:
    """A plot with its title above and a note below; `content` is HTML."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h3>{escape(title)}</h3>{content}{below}</section>'


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
