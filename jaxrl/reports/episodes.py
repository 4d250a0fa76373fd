"""Episodes for people to read: turns, tokens coloured by probability, masks, tool calls, verdicts, rewards.

Without a script: the filters are radio buttons, and rules of CSS hide what is not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.errors import UserError
from jaxrl.files import read_metrics
from jaxrl.reports.page import visible
from jaxrl.reports.run_folder import EVALUATION, Record
from models.files import reason_of
from models.tokenizer_files import has_tokenizer

Decode = Callable[[list[int]], str]
FIRST, LAST = 1500, 500  # tokens that are shown of a longer turn
LONGEST_PIECE = 8  # tokens that are put together to find a whole character
CLASSES = (  # least probability, name
    (0.9, "p0"),
    (0.5, "p1"),
    (0.1, "p2"),
    (0.01, "p3"),
    (0.0, "p4"),
)
WORDS = {"p0": "p ≥ 0.9", "p1": "≥ 0.5", "p2": "≥ 0.1", "p3": "≥ 0.01", "p4": "below 0.01"}
ROLES = {"assistant": "model", "user": "user", "tool": "tool", "output": "tool output"}


class Span(NamedTuple):
    """A stretch of a turn's text with its class of CSS and its numbers; both may be empty."""

    text: str
    kind: str = ""
    title: str = ""


def choose_episodes(folder: Path, count: int) -> list[Record]:
    """At most `count` episodes spread over training, alternating between solved and unsolved, from many problems.

    No episode is chosen twice. A run that kept no training episodes shows those of its evaluations.
    """
    files = sorted(folder.glob("[0-9]*.jsonl"))
    files = files or [f for f in sorted(folder.glob("*.jsonl")) if f.name.startswith("evaluat")]
    if not files:
        return []
    chosen: list[Record] = []
    read: dict[Path, list[Record]] = {}
    for i in range(count):
        path = files[round(i * (len(files) - 1) / max(count - 1, 1))]
        if path not in read:
            read = {path: read_metrics(path)}  # one file at a time: they may be large
        prompts = {c["prompt"] for c in chosen}
        fresh = sorted(
            (e for e in read[path] if e not in chosen),
            key=lambda e: (e["prompt"] in prompts, bool(e["solved"]) != (i % 2 == 0)),
        )
        chosen += fresh[:1]
    return chosen


def run_decoder(folder: Path) -> Decode | None:
    """What turns a run's tokens into text; None where the run kept no tokenizer."""
    kept = folder / "model" / "tokenizer"
    if not has_tokenizer(kept):
        return None
    from transformers import AutoTokenizer  # slow to import, and pages without tokens need none

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(kept))
    except Exception as error:  # the tokenizers library raises plain Exception for a file that it cannot read
        raise UserError(f"{kept}: no tokenizer could be loaded: {reason_of(error)}") from error
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pieces(tokens: Sequence[int], decode: Decode) -> list[tuple[int, str]]:
    """(number of tokens, text) of the shortest stretches that are whole characters.

    A character's bytes may be in several tokens, which are then one stretch. Bytes that do not form a character are
    stretches of one token, shown as U+FFFD. Each text is what the stretch adds after the token before it, since some
    tokenizers leave out a blank at the beginning of what they decode.
    """
    found: list[tuple[int, str]] = []
    place = 0
    while place < len(tokens):
        before = list(tokens[place - 1 : place]) if place else []
        known = decode(before) if before else ""
        options = []
        for n in range(1, min(LONGEST_PIECE, len(tokens) - place) + 1):
            new = list(tokens[place : place + n])
            both = decode(before + new)
            options.append((n, both[len(known) :] if both.startswith(known) else decode(new)))
            if "\ufffd" not in options[-1][1]:
                break
        whole = [option for option in options if "\ufffd" not in option[1]]
        found.append(whole[0] if whole else options[0])
        place += found[-1][0]
    return found


def viewer(runs: Sequence[tuple[str, Sequence[Record], Decode | None]]) -> dict[str, Any]:
    """For the template: key, filters and the episodes of runs (name, episodes, what decodes their tokens)."""
    chosen = [(i, e) for i, (_, of_run, _) in enumerate(runs) for e in of_run]
    names = [name for name, _, _ in runs]
    statuses = list(dict.fromkeys(outcome(e) for _, e in chosen))
    solved = [n for n in ("solved", "not solved") if any(n == _solved(e) for _, e in chosen)]
    filters = [("run", names), ("solved", solved), ("outcome", statuses)]
    episodes = []
    for n, (i, e) in enumerate(chosen):
        kinds = f"run-{i} solved-{solved.index(_solved(e))} outcome-{statuses.index(outcome(e))}"
        run = names[i] if len(runs) > 1 else ""
        episodes.append(shown_episode(e, runs[i][2]) | {"run": run, "kinds": kinds, "is_open": n < 2})
    key = list(WORDS.items())
    return {"key": key, "filters": [(k, values) for k, values in filters if len(values) > 1], "episodes": episodes}


def _solved(episode: Record) -> str:
    return "solved" if episode["solved"] else "not solved"


def outcome(episode: Record) -> str:
    """The status of the verdict; without a verdict, that of the episode."""
    return str((episode.get("verdict") or {}).get("status") or episode["status"])


def shown_episode(episode: Record, decode: Decode | None) -> dict[str, Any]:
    """The texts of one episode."""
    turns = episode.get("turns") or [{"role": "assistant", "text": episode["text"], "sampled": True}]
    sampled = sum(bool(t.get("sampled")) for t in turns)
    calls = [t["status"] for t in turns if t.get("status")]
    trained = episode.get("stage") != EVALUATION
    size = f"{episode['tokens']} tokens, {sampled} turn{'s' * (sampled != 1)}"
    return {
        "solved": bool(episode["solved"]),
        "solved_words": _solved(episode),
        "where": f"{episode.get('stage', '')} step {episode['step']}, {episode['problem']}",
        "size": size + (f", {len(calls)} tool call{'s' * (len(calls) != 1)}" if calls else ""),
        "prompt": episode["prompt"],
        "turns": [shown_turn(turn, decode, trained) for turn in turns],
        **shown_result(episode),
    }


def shown_turn(turn: Record, decode: Decode | None, trained: bool = True) -> dict[str, Any]:
    """A turn with its role, whether it is in the loss (of a `trained` episode), its tool call's status, its tokens."""
    learned = bool(turn.get("learned", turn.get("sampled")))
    tokens = turn.get("tokens") or []
    about = [ROLES.get(turn["role"], str(turn["role"]))]
    about += [f"{len(tokens)} token{'s' * (len(tokens) != 1)}"] if tokens else []
    about += [f"{turn['cached']} tokens before it cached"] if turn.get("cached") else []
    if trained:
        about.append("in the loss" if learned else "not in the loss")
    if turn.get("logprobs") and decode is None:
        about.append("not coloured: the run kept no tokenizer")
    status = str(turn.get("status") or "")
    return {"learned": learned, "about": " · ".join(about), "status": status, "spans": turn_spans(turn, decode)}


def turn_spans(turn: Record, decode: Decode | None) -> list[Span]:
    """The turn's tokens, coloured where they were sampled; its text where the tokens cannot be decoded."""
    tokens, logprobs = turn.get("tokens") or [], turn.get("logprobs") or []
    if decode is None or not tokens:
        return [Span(turn["text"])]
    if len(tokens) > FIRST + LAST:
        left_out = len(tokens) - FIRST - LAST
        first = turn | {"tokens": tokens[:FIRST], "logprobs": logprobs[:FIRST]}
        last = turn | {"tokens": tokens[-LAST:], "logprobs": logprobs[-LAST:]}
        between = Span(f"\n… {left_out:,} tokens not shown …\n", "role")
        return [*turn_spans(first, decode), between, *turn_spans(last, decode)]
    if len(logprobs) != len(tokens):
        return [Span(decode(list(tokens)))]
    spans, place = [], 0
    for count, text in pieces(tokens, decode):
        span = logprobs[place : place + count]
        total = sum(span)
        numbers = f"p {math.exp(min(total, 0.0)):.3g}, logprob {total:.3g}, token "
        numbers += " ".join(map(str, tokens[place : place + count]))
        spans.append(Span(visible(text).replace("\r", "␍"), token_class(min(span)), numbers))
        place += count
    return spans


def token_class(logprob: float) -> str:
    """The class of CSS for a token's logprob."""
    if not isinstance(logprob, (int, float)) or math.isnan(logprob):
        return "unknown"
    return next(name for least, name in CLASSES if math.exp(min(logprob, 0.0)) >= least)


def shown_result(episode: Record) -> dict[str, Any]:
    """Verdict with its first failing test, reward and its parts, attempts, weight versions."""
    verdict = episode.get("verdict") or {}
    tests = verdict.get("tests", [])
    passed = sum(t["status"] == "passed" for t in tests)
    lines = [f"episode {episode['status']}"]
    if episode.get("attempts"):
        attempts = [
            f"{i}: {'solved' if solved else 'passes the public tests only' if public else 'fails public tests'}"
            for i, (public, solved, *_) in enumerate(episode["attempts"], 1)
        ]
        lines.append(f"programs {', '.join(attempts)}")
    versions = episode.get("weight_versions")
    if versions:
        lines.append(f"weight versions {', '.join(map(str, dict.fromkeys(versions)))}")
    failing = next((t for t in tests if t["status"] != "passed"), {})
    known = [f"{name}: {failing[name]}" for name in ("message", "input", "expected", "actual") if failing.get(name)]
    return {
        "verdict": outcome(episode) if verdict else "",
        "counts": f", {passed} of {len(tests)} tests passed" if tests else "",
        "reward": f"{episode['reward']:.3g}",
        "parts": ", ".join(f"{name} {value:.3g}" for name, value in episode["parts"].items()),
        "lines": lines,
        "failing": failing and (str(failing["status"]), known),
    }
