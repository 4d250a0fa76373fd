"""How the cost of a function grows with its input: class, coefficient, the measured curve and all fits.

    python -m jaxrl.complexity FILE.py:FUNCTION                                  examples from the annotations
    python -m jaxrl.complexity FILE.py:FUNCTION --input "[3, 1, 2], 'abc'"       or given
    python -m jaxrl.complexity FILE.py:FUNCTION --clock time --plot curve.png
    python -m jaxrl.complexity FILE.py:FUNCTION --space
    python -m jaxrl.complexity --labels ROWS.json                                the labels of BigO(Bench), reproduced

The function runs in the sandbox on larger and larger inputs made from the example; the method is that of BigO(Bench)
(arXiv 2503.15242), see docs/reference/complexity.md. Operations are counted: the same result each time.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrl.config.command_line import at_least
from jaxrl.errors import UserError, command
from jaxrl.tasks.growth import fit
from jaxrl.tasks.growth.benchmark import read_solutions
from jaxrl.tasks.growth.inputs import Series, variables
from jaxrl.tasks.growth.measure import OPERATIONS, Found, Measurement, found, request
from jaxrl.tasks.growth.names import same
from jaxrl.tasks.growth.vote import Candidate
from sandbox.pool import Pool

EXAMPLES: dict[str, Any] = {
    "int": 5, "float": 2.5, "str": "abcab", "list": [3, 1, 2], "list[int]": [3, 1, 2], "list[float]": [0.5, 1.5, 1.0],
    "list[str]": ["abc", "de", "fgh"], "list[bool]": [True, False, True], "list[list[int]]": [[3, 1], [2, 5]],
    "list[list[str]]": [["a", "b"], ["c", "d"]], "list[tuple[int,int]]": [(3, 1), (2, 5)], "bool": True,
}  # fmt: skip
UNITS = {"operations": "operations", "time": "ns", "space": "bytes"}


@command()
def main(arguments: list[str]) -> int:
    """The command: class and curve of a function, or the labels of a file."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.complexity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("function", nargs="?", default="", help="FILE.py:FUNCTION")
    parser.add_argument("--input", default="", help="an example of the arguments, as Python writes them")
    parser.add_argument("--clock", choices=("operations", "time"), default="operations")
    parser.add_argument("--space", action="store_true", help="bytes instead of time")
    parser.add_argument("--end", type=at_least(8), default=3100, help="largest size, as a multiple of the example")
    parser.add_argument("--operations", type=at_least(1000), default=OPERATIONS, help="of one call, at most")
    parser.add_argument("--plot", default="", help="a .png of the curves")
    parser.add_argument("--labels", default="", help="a file of BigO(Bench)")
    options = parser.parse_args(arguments)
    if options.space and options.clock == "time":
        raise UserError("--space and --clock time exclude each other: bytes have no clock")
    if bool(options.function) == bool(options.labels):
        raise UserError("give either FILE.py:FUNCTION or --labels FILE")
    if options.labels:
        labels(options.labels, options.end, options.operations)
        return 0
    source, name = read_function(options.function)
    example = read_example(source, name, options.input)
    clock = "space" if options.space else options.clock
    asked = Measurement(source, name, example, clock=clock, end=options.end, operations=options.operations)
    result = measured(asked)
    if result.growth is None:
        raise UserError(f"{options.function}: no class was found ({result.error})")
    show(result, example, UNITS[clock])
    if options.plot:
        plot(result, options.plot, UNITS[clock])
    return 0


def measured(asked: Measurement) -> Found:
    """Measures in a sandbox of its own."""
    with Pool(1) as pool:
        return found(asked, pool.run([request(asked)])[0])


def read_function(text: str) -> tuple[str, str]:
    """The source of FILE.py:FUNCTION and the function's name. Raises UserError for a file without it."""
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise UserError(f"{text!r} must be FILE.py:FUNCTION")
    try:
        source = Path(path).expanduser().read_text()
        tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as Python ({error})") from None
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    if name not in names:
        raise UserError(f"{path} has no function {name!r}; it has: {', '.join(names) or 'none'}")
    return source, name


def read_example(source: str, name: str, text: str) -> tuple[Any, ...]:
    """The arguments of the example, given or made from the annotations. Raises UserError for what is not known."""
    (function,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name][-1:]
    given = function.args.args
    if text:
        try:
            values = ast.literal_eval(f"({text},)")
        except (ValueError, SyntaxError):
            raise UserError(
                f"--input {text!r} must be arguments as Python writes them, such as \"[3, 1], 'ab'\""
            ) from None
    else:
        kinds = [ast.unparse(a.annotation).lower().replace(" ", "") if a.annotation else "" for a in given]
        unknown = [a.arg for a, k in zip(given, kinds) if k not in EXAMPLES]
        if unknown:
            raise UserError(f"--input must give an example: the annotation of {', '.join(unknown)} does not")
        values = tuple(EXAMPLES[k] for k in kinds)
    least = len(given) - len(function.args.defaults)
    if not least <= len(values) <= len(given):
        raise UserError(f"--input has {len(values)} arguments; {name} takes {len(given)}")
    if not variables(values):
        raise UserError("--input has nothing that can grow: numbers, texts, lists of these, or lists of such lists")
    return values


def show(result: Found, example: tuple[Any, ...], unit: str) -> None:
    """Prints the class, and of the leading series the curve and the fits."""
    growth = result.growth
    assert growth is not None
    console = Console()
    console.print(
        f"[bold]{growth.text}[/bold]   coefficient {growth.coefficient / fit.SCALE:.4g} {unit}", highlight=False
    )
    for (i, dimension), name in growth.classes.items():
        where = {1: " (rows)", 2: " (their lengths)"}.get(dimension, "")
        console.print(
            f"argument {i + 1}{where} alone, example {str(example[i])[:40]}: {name}", highlight=False, markup=False
        )
    leading = max(growth.candidates, key=lambda c: c.largest)
    console.print(f"curve: {described(leading.series)}", markup=False)
    values = result.values[leading.series]
    curve = fit.prepared(values)
    assert curve is not None
    table = Table("size", unit)
    for size, value in zip(*curve):
        table.add_row(f"{size:.0f}", f"{value / fit.SCALE:.0f}")
    console.print(table)
    kind: fit.Kind = "space" if unit == "bytes" else "time"
    fits = Table("fit", "coefficient", "residual", "penalized", "")
    for each, penalty in zip(fit.fits(curve), fit.PENALTIES[kind]):
        chosen = "chosen" if each.name == leading.fit.name and each.residual == leading.fit.residual else ""
        fits.add_row(each.name, f"{each.coefficient / fit.SCALE:.4g}", f"{each.residual:.3g}",
                     f"{each.residual * penalty:.3g}", chosen)  # fmt: skip
    console.print(fits)


def described(series: Series) -> str:
    """A series for people."""
    names = [f"{i + 1}{ {1: ' rows', 2: ' lengths'}.get(d, '') }" for i, d in series.varied]
    others = f", others {series.others}" if series.others else ""
    return f"argument {', '.join(names)} by {series.method}{others}"


def plot(result: Found, path: str, unit: str) -> None:
    """Draws each series and its fit. Raises UserError for a file that cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert result.growth is not None
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for candidate in result.growth.candidates:
        draw(axes, candidate, result)
    axes.set(title=result.growth.text, xlabel="size, as a multiple of the example", ylabel=unit, xscale="log")
    axes.set_yscale("log", nonpositive="clip")
    axes.legend(fontsize=6)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path} cannot be written ({error})") from None
    pyplot.close(figure)


def draw(axes: Any, candidate: Candidate, result: Found) -> None:
    """One series: points, and the last segment of its fit."""
    curve = fit.prepared(result.values[candidate.series])
    assert curve is not None
    sizes, values = curve[0], curve[1] / fit.SCALE
    (points,) = axes.plot(
        sizes, values, "o", markersize=3, label=f"{described(candidate.series)}: {candidate.fit.name}"
    )
    fitted = np.array([candidate.fit.at(n) for n in sizes]) / fit.SCALE + values[0]
    axes.plot(sizes, fitted, color=points.get_color(), linewidth=0.8)


def labels(path: str, end: int, operations: int) -> None:
    """Prints, for each solution of the benchmark, its label and what is measured here."""
    table, right, solutions = Table("problem", "solution", "label", "measured", "same"), 0, read_solutions(path)
    with Pool() as pool:
        asked = [s.measurement(end=end, operations=operations) for s in solutions]
        verdicts = pool.run([request(a) for a in asked])
    for solution, a, verdict in zip(solutions, asked, verdicts):
        result = found(a, verdict)
        text = result.growth.text if result.growth else result.error
        is_same = same(text, solution.label)
        right += is_same
        table.add_row(solution.title, solution.id, solution.label, text, "yes" if is_same else "no")
    console = Console(width=110)
    console.print(table)
    console.print(f"{right} of {len(solutions)} labels reproduced")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
