"""The parts that pages of runs are made of: style, tables (HTML and Markdown), plots as inline SVG.

A page is one file without scripts that needs no network, and tells the browser to allow neither.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart by all kinds of colour vision; the blue lighter, to be legible on black too.
COLOURS = ("#1f83c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
INK, DIM, LINE = "#010203", "#040506", "#070809"  # in plots; the page puts the scheme's own colours in their place

STYLE = """
:root { color-scheme: light dark; --fg: #1c2430; --dim: #5d6778; --line: #dfe4ec; --bg: #fff; --card: #f7f8fb;
  --good: #0b6e4f; --bad: #b42318; --mark: #fff3c4 }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e9ef; --dim: #a0a9b8; --line: #343d4b; --bg: #12161d;
  --card: #1a2029; --good: #3ccb95; --bad: #ff8a80; --mark: #4a3d10 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg);
  max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem } .dim { color: var(--dim) }
.lead { font-size: 1.12rem; max-width: 60rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th { text-align: left; vertical-align: bottom; color: var(--dim); font-weight: 500; line-height: 1.25 }
td, th { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line) }
td { font-variant-numeric: tabular-nums } td:not(:first-child) { white-space: nowrap }
.number { text-align: right } .best td { background: var(--mark) }
.big { font-size: 2.1rem; font-weight: 650; margin-right: 2.5rem; display: inline-block }
.big small { display: block; font-size: .8rem; font-weight: 400; color: var(--dim) }
svg { width: 100%; height: auto; display: block }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(330px, 100%), 1fr)); gap: 1rem 1.5rem }
.plot { max-width: 760px; overflow-x: auto } .plot svg { min-width: 560px }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .4rem 0 } .legend span { white-space: nowrap }
.key { display: inline-block; width: 1.1em; height: .75em; border-radius: 3px; margin-right: .4em }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden; margin: .8rem 0 }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1rem; align-items: center }
.bars .bar { margin: 0; border-radius: 3px; overflow: visible; height: auto; align-items: center }
.bars .bar div { height: 20px } .bars .bar span { margin-left: .6rem; white-space: nowrap }
@media (max-width: 640px) { .bars { grid-template-columns: 1fr } }
pre { margin: .3rem 0 0; font: 13px/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.passed { color: var(--good); font-weight: 600 } .failed { color: var(--bad); font-weight: 600 }
"""


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole HTML page; `parts` are HTML."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False, best: int = -1) -> str:
    """A table of texts.

    Args:
        numbers: columns after the first are aligned to the right.
        best: the row to be marked.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["", *(" class=number" if numbers else "" for _ in row[1:])]
        return "".join(f"<{tag}{kind}>{html.escape(c)}</{tag}>" for kind, c in zip(kinds, row))

    body = "".join(f"<tr{' class=best' if i == best else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows))
    return f"<div class=wide><table><tr>{cells('th', header)}</tr>{body}</table></div>"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown, columns after the first aligned to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines) + "\n"


def markdown_text(text: str) -> str:
    """The text in one line that Markdown shows as it is, in a table too."""
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(sign, shown)
    return " ".join(text.split())


def svg(figure: Figure) -> str:
    """The figure as SVG for a page: text as text, no background, INK, DIM and LINE in the colours of the scheme."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxrl"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # inline SVG needs none, and so no address is in the page
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
    for colour, name in ((INK, "--fg"), (DIM, "--dim"), (LINE, "--line")):
        text = text.replace(colour, f"var({name})")
    return text


def plain_axes(width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure with one axis in the page's style; inches."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")  # a pixel is a point, as in SVG
    axis = figure.subplots()
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(DIM)
    axis.tick_params(which="both", colors=DIM, labelsize=8.5)
    axis.grid(color=LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure, axis


def legend(names: Sequence[str], colours: Sequence[str]) -> str:
    """Names with their colours."""
    keys = (f"<span><i class=key style='background:{c}'></i>{html.escape(n)}</span>" for n, c in zip(names, colours))
    return f"<p class=legend>{''.join(keys)}</p>"


def short(value: float | None, unknown: str = "not known") -> str:
    """An amount in three digits: 0, 12.3, 4.56e+12; `unknown` for None."""
    if value is None:
        return unknown
    return f"{value:.2e}" if abs(value) >= 1e5 else f"{value:.3g}"
