"""What programs save on the bytes of any file, beside gzip and a model's own prediction of them (KoLMogorov Test).

    python -m jaxrl.kolmogorov FILE --length 128                              what compressors take
    python -m jaxrl.kolmogorov FILE --length 128 --samples SAMPLES.jsonl      and programs
    python -m jaxrl.kolmogorov FILE --length 128 --model MODEL                and a model that predicts the numbers

FILE is cut into pieces of --length bytes; "drawn" are the sequences that the task draws and holds out, of at most that
length, --pieces of them. SAMPLES is a samples file of jaxrl.evaluate on task kolmogorov with this task.path and
task.length, or lines of {"piece": number, "program": text}; the first right program of a piece counts. All rates are
bits over bits of the pieces: below 1 is compression.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jaxrl.config.command_line import at_least
from jaxrl.errors import command
from jaxrl.tasks.kolmogorov import Settings, drawn_held_out, outcome, program_bits, program_in, read_sequences
from jaxrl.tasks.rows import DataError, read_rows
from jaxrl.tasks.sequences.compressors import gzip_bits, joined_gzip_rate, zlib_bits
from jaxrl.tasks.sequences.language import LONGEST, ProgramError, bits, literal, parse
from rollouts.services import Services
from sandbox.pool import Pool

Pieces = Sequence[Sequence[int]]


@command()
def main(arguments: list[str]) -> int:
    """The command: a table of rates."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.kolmogorov", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", help='any file, also .gz, .jsonl of lists in "sequence", or drawn')
    parser.add_argument("--length", type=at_least(2), default=128, help=f"bytes of a piece, at most {LONGEST}")
    parser.add_argument("--pieces", type=at_least(0), default=0, help="the first ones only; 0: all")
    parser.add_argument("--samples", default="", help=".jsonl of programs")
    parser.add_argument("--model", default="", help="Hugging Face folder, GGUF file, or run, that predicts the numbers")
    options = parser.parse_args(arguments)
    if options.length > LONGEST:
        parser.error(f"--length {options.length} must be at most {LONGEST}: no program gives more values")
    pieces = pieces_of(options.file, options.length, options.pieces)
    table = Table("code", "right", "bits per bit")
    for name, rate in compressors(pieces).items():
        table.add_row(name, "", f"{rate:.4f}")
    if options.samples:
        for name, right, rate in of_programs(pieces, read_programs(options.samples, len(pieces))):
            table.add_row(name, right, f"{rate:.4f}")
    if options.model:
        from jaxrl.evaluation.predicted import predicted_bits

        total = sum(predicted_bits(options.model, [" ".join(map(str, piece)) for piece in pieces]))
        table.add_row("the model's prediction of the numbers", "", f"{total / (8 * sum(map(len, pieces))):.4f}")
    Console().print(table)
    return 0


def pieces_of(file: str, length: int, count: int) -> Pieces:
    """The first `count` pieces of a file or, if that is "drawn", held-out problems of the task (0: all, or 128)."""
    if file == "drawn":
        return [problem.answer for problem in drawn_held_out(Settings(length=length, held_out_problems=count or 128))]
    return read_sequences(file, length)[: count or None]


def compressors(pieces: Pieces) -> dict[str, float]:
    """Rates of general compressors and of literal programs."""
    total = 8.0 * sum(map(len, pieces))
    dictionary = bytes(v for piece in pieces[: len(pieces) // 10] for v in piece)[-32768:]
    rest = pieces[len(pieces) // 10 :]
    return {
        "gzip of all pieces together": gzip_bits(bytes(v for piece in pieces for v in piece)) / total,
        "deflate of each piece": sum(zlib_bits(bytes(p)) for p in pieces) / total,
        "deflate of each piece, the first tenth as dictionary": sum(zlib_bits(bytes(p), dictionary) for p in rest)
        / (8.0 * sum(map(len, rest))),
        "literal programs": sum(1 + bits(literal(p)) for p in pieces) / total,
    }


def read_programs(path: str, count: int) -> list[list[str]]:
    """The programs of each piece. Raises DataError for a line that belongs to none."""
    programs: list[list[str]] = [[] for _ in range(count)]
    for row in read_rows(path):
        if "piece" in row.fields:
            piece, program = int(row.number("piece")), row.text("program")
        else:
            found = re.fullmatch(r"kolmogorov/(?:held_out/\d+/)?(\d+)", row.text("problem"))
            if not found:
                raise DataError(f"{row.where}: problem must be kolmogorov/NUMBER, is {row.text('problem')!r}")
            piece, program = int(found[1]), program_in(row.text("text"))
        if not piece >= 0:
            raise DataError(f"{row.where}: piece must be a number from 0, is {piece}")
        if piece < count:
            programs[piece].append(program)
    return programs


def of_programs(pieces: Pieces, programs: Sequence[Sequence[str]]) -> list[tuple[str, str, float]]:
    """(code, how many are right, rate) for the pieces that have programs. Raises DataError where none has."""
    tried = [(piece, texts) for piece, texts in zip(pieces, programs) if texts]
    if not tried:
        raise DataError("no sample is of a piece of the file")
    with Pool() as pool:
        right = asyncio.run(_right(tried, Services(pool)))
    shown, total = f"{sum(r is not None for r in right)} of {len(tried)}", 8.0 * sum(len(p) for p, _ in tried)
    rows = []
    for prior in ("strict", "uniform"):
        spent = [
            1 + (bits(literal(p), prior) if program is None else _bits(program, prior))
            for (p, _), program in zip(tried, right)
        ]
        rows.append((f"programs, {prior} prior, literals for the rest", shown, sum(spent) / total))
    solved = [p for (p, _), program in zip(tried, right) if program is not None]
    unsolved = [p for (p, _), program in zip(tried, right) if program is None]
    rate = joined_gzip_rate([program for program in right if program is not None], solved, unsolved)
    return [*rows, ("gzip of the right programs together and of the other pieces", shown, rate)]


def _bits(program: str, prior: str) -> float:
    try:
        return bits(parse(program), "uniform" if prior == "uniform" else "strict")
    except ProgramError:
        return program_bits(program, Settings(program="python"))


async def _right(tried: Sequence[tuple[Sequence[int], Sequence[str]]], services: Services) -> list[str | None]:
    """The first program of each piece that gives it, of the language or in Python."""

    async def first(values: Sequence[int], programs: Sequence[str]) -> str | None:
        for program in programs:
            for kind in ("language", "python"):
                given, _ = await outcome(program, Settings(program=kind), services, values)
                if given == [*values]:
                    return program
        return None

    return list(await asyncio.gather(*(first(values, programs) for values, programs in tried)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
