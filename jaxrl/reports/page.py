"""What pages of runs are made with: templates, tables in Markdown, plots as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, distinct in all kinds of colour vision; the blue is lighter, to be legible on black too.
COLOURS = ("#1f83c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
INK, DIM, LINE = "#010203", "#040506", "#070809"  # in plots; the page puts the scheme's own colours in their place


def render(template: str, **values: Any) -> str:
    """The page that a template of templates/ makes of these values, all of them escaped but figures from `svg`."""
    return _ENVIRONMENT.get_template(template).render(values)


def visible(text: str) -> str:
    """Control characters, which a browser does not show, as their pictures (U+2400 and on); half characters as escapes.

    Line ends and tabs stay.
    """
    return text.translate(_PICTURES).encode("utf-8", "backslashreplace").decode()


_PICTURES = {i: 0x2400 + i for i in range(32) if chr(i) not in "\t\n\r"}
_ENVIRONMENT = Environment(
    loader=PackageLoader("jaxrl.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is of another type
)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown, columns after the first aligned to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines) + "\n"


def markdown_text(text: str) -> str:
    """The text in one line that Markdown shows as it is, in a table too."""
    text = visible(text)
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(sign, shown)
    return " ".join(text.split())


def svg(figure: Figure) -> Markup:
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
    return Markup(text)  # matplotlib has escaped the texts in it


def plain_axes(width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure with one axis in the page's style; inches."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")  # a pixel is a point, as in SVG
    axis = figure.subplots()
    axis.set_title(visible(title), loc="left", fontsize=10, color=INK, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(DIM)
    axis.tick_params(which="both", colors=DIM, labelsize=8.5)
    axis.grid(color=LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure, axis


def score_text(value: float, share: bool, sign: str = "%") -> str:
    """A score: a share in percent, any other number as it is."""
    return f"{100 * value:.1f}{sign}" if share else f"{value:.4g}"


def short(value: float | None, unknown: str = "not known") -> str:
    """An amount in three digits: 0, 12.3, 4.56e+12; `unknown` for None."""
    if value is None:
        return unknown
    return f"{value:.2e}" if abs(value) >= 1e5 else f"{value:.3g}"
