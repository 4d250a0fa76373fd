"""The language of sequences, its programs in bits, and what a program is worth."""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib

import numpy as np
import pytest
from judging import judge_all

from jaxrl import kolmogorov as command
from jaxrl.errors import UserError
from jaxrl.tasks import kolmogorov
from jaxrl.tasks.rows import DataError
from jaxrl.tasks.sequences.compressors import joined_gzip_rate, zlib_bits
from jaxrl.tasks.sequences.generate import Shape, generate
from jaxrl.tasks.sequences.language import ProgramError, bits, literal, parse, run, show
from rollouts.episode import Episode, Group, Submission


def program(*calls: str) -> str:
    lines = [f"s{i} = {call}" for i, call in enumerate(calls, 1)]
    return "\n".join([*lines, f"output = s{len(calls)}"])


PROGRAMS = {  # calls: bits as the benchmark counts them, the sequence
    ("range_func_up(3, 7)",): (25.287712379549447, [3, 4, 5, 6, 7]),
    ("set_list([5, 1, 9, 9, 2])",): (49.28771237954945, [5, 1, 9, 9, 2]),
    ("range_func_up(0, 9)", "reverse_list(s1)", "concatenate(s1, s2)"): (
        38.74534976054121,
        [*range(10), *range(9, -1, -1)],
    ),
    ("range_func_interval(0, 40, 4)", "get_subsequence_with_jumps(s1, 2)", "add_item_list(s2, 7)"): (
        51.16038725982005,
        [7, 15, 23, 31, 39],
    ),
    (
        "repeat_num(4, 9)",
        "repeat_list(s1, 3)",
        "substitute(s2, 9, 8)",
        "get_subsequence_between_indices(s3, 2, 6)",
    ): (75.12617154448213, [8] * 4),
}


@pytest.mark.parametrize("calls", PROGRAMS)
def test_bits_are_the_benchmarks(calls):
    expected, values = PROGRAMS[calls]
    lines = parse(program(*calls))
    assert bits(lines, "uniform") == pytest.approx(expected, abs=1e-9) and run(lines) == values


def test_bits_by_hand():
    lines = parse(program("repeat_num(3, 7)", "filter(is_odd, s1)", "concatenate(s1, s2, s1)"))
    opcode = math.log2(25)
    plain = 4 * opcode + (math.log2(20) + 8) + 1 + 3 * math.log2(3)
    assert bits(lines, "uniform") == pytest.approx(plain)
    assert bits(lines, "strict") == pytest.approx(plain - math.log2(20) + 8 + math.log2(3) + 3)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        ("max_n(s1, 2)", [9, 5]), ("min_n(s1, 3)", [1, 2, 2]), ("filter(is_even, s1)", [2, 2]),
        ("scan_add(s1)", [5, 7, 16, 17, 19]), ("add_two_lists(s1, s1)", [10, 4, 18, 2, 4]),
        ("subtract_two_lists(s1, s1)", [0] * 5), ("modulo_item_list(s1, 4)", [1, 2, 1, 1, 2]),
        ("modulo_two_lists(s1, s1)", [0] * 5), ("interleave(s1, s1)", [5, 5, 2, 2, 9, 9, 1, 1, 2, 2]),
        ("subtract_item_list(s1, 1)", [4, 1, 8, 0, 1]),
        ("repeat_list(2, s1)", [5, 2, 9, 1, 2] * 2), ("filter(s1, is_not_zero)", [5, 2, 9, 1, 2]),
    ],
)  # fmt: skip
def test_what_functions_do(call, values):
    assert run(parse(program("set_list([5, 2, 9, 1, 2])", call))) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an output line, this has 0"),
        ("a = range_func_up(1, 2)", "an output line, this has 1"),
        ("a = range_func_up(1, 2)\nb = reverse_list(a)", "the last line must be output"),
        ("a = range_func_up(1, 2)\nb = reverse_list(a)\noutput = a", "output must be the line before it"),
        ("a = random(1)\noutput = a", "line 1: unknown function random"),
        ("a = __import__('os')\noutput = a", "unknown function __import__"),
        ("a = reverse_list(b)\noutput = a", "b is not an earlier line"),
        ("a = range_func_up(1, 256)\noutput = a", "range_func_up takes byte, byte"),
        ("a = range_func_up(1, True)\noutput = a", "range_func_up takes byte, byte"),
        ("a = repeat_num(3, 1 + 1)\noutput = a", "arguments are numbers, lists of numbers and names"),
        ("a = set_list([])\noutput = a", "set_list takes values"),
        ("a = range_func_up(9, 3)\noutput = a", "one at least"),
        ("a = repeat_num(255, 3)\nb = concatenate(a, a)\noutput = b", "line 2 gives more than 256 values"),
        ("a = set_list([1, 2])\nb = modulo_item_list(a, 0)\noutput = b", "line 2: modulo 0"),
        ("a = set_list([200])\nb = add_two_lists(a, a)\noutput = b", "values from 0 to 255"),
        ("for i in x: pass\noutput = a", "line 1 must be NAME = FUNCTION"),
        ("(" * 400, "not a program"),
    ],
)
def test_what_is_not_a_program(text, message):
    with pytest.raises(ProgramError, match=message):
        run(parse(text))


def test_the_benchmark_may_put_out_any_line():
    text = "a = range_func_up(1, 3)\nb = reverse_list(a)\noutput = a"
    assert run(parse(text, any_output=True)) == [1, 2, 3]


def test_values_stay_bounded():
    doubling = program("set_list([255])", *[f"add_two_lists(s{i}, s{i})" for i in range(1, 60)])
    with pytest.raises(ProgramError, match="values beyond"):
        run(parse(doubling))


@pytest.mark.parametrize("shape", [Shape(), Shape(3, 3, 6, 31, 24, 3)])
def test_drawn_programs_give_their_sequences(shape):
    lengths = []
    for seed in range(300):
        lines, values = generate(random.Random(seed), shape)
        again = generate(random.Random(seed), shape)
        assert (lines, values) == again and run(parse(show(lines))) == values
        assert bits(lines, "strict") >= bits(lines, "uniform") and len(values) <= shape.longest
        lengths.append(bits(lines) / bits(literal(values)))
    assert np.mean(lengths) < 1


# --- the task


def solved_by(task, problems, texts, pool=None):
    return judge_all(task, problems, texts, pool)


def test_a_short_program_is_worth_more_than_a_literal():
    task = kolmogorov.make_task(kolmogorov.Settings(held_out_problems=2, explain=False), 0)
    problem = kolmogorov.problem_of([*range(40)], "p", kolmogorov.Settings())
    short, plain = program("range_func_up(0, 39)"), show(literal([*range(40)]))
    wrong, none = program("range_func_up(0, 29)"), "I do not know"
    values = [r.value for r in solved_by(task, [problem] * 4, [short, plain, wrong, none])]
    saved = 1 - bits(parse(short)) / bits(parse(plain))
    assert values == pytest.approx([1 + 0.5 * saved, 1, 0.2 * 30 / 40, 0]) and saved > 0.8


def test_parts_are_apart_and_repeat():
    settings = kolmogorov.Settings(held_out_problems=60, length=24, largest=31, base_length=5, bases=2)
    task, again = (kolmogorov.make_task(settings, 0) for _ in range(2))
    held_out = {p.answer for p in task.held_out}
    assert len(held_out) == 60 and task.held_out == again.held_out and task.train[7] == again.train[7]
    assert not held_out & {task.train[i].answer for i in range(500)}
    assert not held_out & {task.demonstrations[i].answer for i in range(500)}
    shown = [task.demonstrations[i] for i in range(100)]
    assert all(r.solved for r in solved_by(task, shown, [p.demonstration for p in shown]))
    lazy = kolmogorov.make_task(kolmogorov.Settings(lazy_demonstrations=1.0, held_out_problems=1), 0)
    assert all("set_list" in lazy.demonstrations[i].demonstration for i in range(10))


def test_metrics_are_honest():
    settings = kolmogorov.Settings()
    problem = kolmogorov.problem_of([*range(20)], "p", settings)
    task = kolmogorov.make_task(kolmogorov.Settings(held_out_problems=1), 0)
    texts = [program("range_func_up(0, 19)"), show(literal([*range(20)])), program("range_func_up(0, 16)")]
    rewards = solved_by(task, [problem] * 3, texts)
    episodes = [
        Episode(problem, np.zeros(1, np.int32), [], r, "finished", t, submission=Submission(t, t))
        for r, t in zip(rewards, texts)
    ]
    found = kolmogorov.metrics(Group(problem, episodes), settings)
    plain, short = (bits(parse(t)) for t in (texts[1], texts[0]))
    assert found["bits_per_bit"] == pytest.approx((3 + short + 2 * plain) / 3 / 160)
    assert found["literals"] == pytest.approx(1 / 3) and found["first_16"] == 1 and "first_32" not in found
    n = 20
    assert plain == pytest.approx(2 * math.log2(25) + 8 * n + 8)


def test_python_programs_run_in_the_sandbox(pool):
    settings = kolmogorov.Settings(program="python", held_out_problems=2)
    task = kolmogorov.make_task(settings, 0)
    problem = kolmogorov.problem_of([0, 1, 4, 9], "p", settings)
    texts = [
        "```python\noutput = [i * i for i in range(4)]\n```",
        "output = [0, 1]",
        "output = list(open('x'))",
        "x = 1",
    ]
    rewards = solved_by(task, [problem] * 4, texts, pool)
    assert [r.solved for r in rewards] == [True, False, False, False]
    assert len(task.demonstrations) == 0 and "python" in problem.messages[0]["content"].lower()


def test_pieces_of_a_file(tmp_path):
    data = bytes(random.Random(0).choices(range(256), k=1000))
    (tmp_path / "bytes.bin").write_bytes(data)
    (tmp_path / "bytes.bin.gz").write_bytes(gzip.compress(data))
    for name in ("bytes.bin", "bytes.bin.gz"):
        settings = kolmogorov.Settings(path=str(tmp_path / name), length=50, held_out_problems=128)
        task = kolmogorov.make_task(settings, 0)
        assert [p.id for p in task.held_out] == ["kolmogorov/0", "kolmogorov/10"] and len(task.train) == 18
        assert bytes(task.held_out[1].answer) == data[500:550]
    with pytest.raises(DataError, match=r"has 1000 bytes, fewer than task\.length"):
        kolmogorov.read_sequences(str(tmp_path / "bytes.bin"), 1001)
    (tmp_path / "lists.jsonl").write_text('{"sequence": [1, 2]}\n{"sequence": [1, 256]}\n')
    with pytest.raises(DataError, match='line 2: "sequence" must be a list'):
        kolmogorov.read_sequences(str(tmp_path / "lists.jsonl"), 8)


def test_a_setting_that_does_nothing_is_an_error():
    with pytest.raises(UserError, match=r"task\.prior = 'uniform' must be 'strict'"):
        kolmogorov.Settings(program="python", prior="uniform").check()


# --- the command


def test_the_command_compares_codes(tmp_path, capsys):
    pieces = [[*range(32)], [7] * 32, random.Random(0).choices(range(256), k=32)]
    (tmp_path / "data.bin").write_bytes(bytes(v for p in pieces for v in p))
    samples = [
        {"piece": 0, "program": program("range_func_up(0, 31)")},
        {"piece": 1, "program": "output = [7] * 32"},
        {"problem": "kolmogorov/2", "text": "no idea"},
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    arguments = [str(tmp_path / "data.bin"), "--length", "32", "--samples", str(tmp_path / "samples.jsonl")]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 of 3" in out and "gzip of all pieces together" in out
    rates = command.of_programs(pieces, command.read_programs(str(tmp_path / "samples.jsonl"), 3))
    by_name = {name: rate for name, _, rate in rates}
    strict = by_name["programs, strict prior, literals for the rest"]
    python = kolmogorov.program_bits("output = [7] * 32", kolmogorov.Settings(program="python"))
    total = 3 + bits(parse(samples[0]["program"])) + python + bits(literal(pieces[2]))
    assert strict == pytest.approx(total / (8 * 96))
    assert command.main([*arguments[:3], "--samples", str(tmp_path / "none.jsonl")]) == 1


def test_the_command_takes_the_sequences_that_the_task_draws(tmp_path, capsys):
    """Whose own programs are right, under the names that an evaluation gives them."""
    task = kolmogorov.make_task(kolmogorov.Settings(length=24, held_out_problems=6), 0)
    lines = [{"problem": p.id, "text": p.demonstration} for p in task.held_out]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = ["--samples", str(tmp_path / "samples.jsonl")]
    assert command.main(["drawn", "--length", "24", "--pieces", "6", *samples]) == 0
    assert "6 of 6" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["drawn", "--length", "300"])
    assert "--length 300 must be at most 256" in capsys.readouterr().err


def test_compressors():
    data = b"abcabcabc" * 20
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert zlib_bits(data) == 8 * len(raw.compress(data) + raw.flush()) > zlib_bits(data, data)
    rate = joined_gzip_rate(["output = [1]"], [[1]], [[2, 3]])
    expected = 8 * (len(gzip.compress(b"output = [1]", mtime=0)) + len(gzip.compress(b"\2\3", mtime=0))) + 2
    assert rate == pytest.approx(expected / 24)
    with pytest.raises(ValueError, match="no sequences to compress"):
        joined_gzip_rate([], [], [])
