"""Episodes for people to read: turns, tokens coloured by probability, masks, tool calls, verdicts, rewards.

Without a script: the filters are radio buttons, and rules of CSS hide what is not chosen.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrl.metrics import read_metrics

Record = dict[str, Any]
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

STYLE = """
:root { --p1: #fdeccf; --p2: #fbcf8f; --p3: #ee9a3a; --p4: #9c4400; --p4-text: #fff; --mask: #eceff4 }
@media (prefers-color-scheme: dark) { :root { --p1: #3b2e17; --p2: #634414; --p3: #9a5f0c; --p4: #ffb454;
  --p4-text: #1a1200; --mask: #20262f } }
.p1 { background: var(--p1) } .p2 { background: var(--p2) } .p3 { background: var(--p3) }
.p4 { background: var(--p4); color: var(--p4-text) } .unknown { text-decoration: underline dotted }
.episode { border: 1px solid var(--line); border-radius: 9px; margin: .8rem 0; padding: .7rem 1rem;
  background: var(--card) }
.episode > summary { cursor: pointer; overflow-wrap: anywhere } .episode[open] > summary { margin-bottom: .5rem }
.turn { border-left: 4px solid var(--line); padding: .1rem 0 .25rem .8rem; margin: .5rem 0 }
.turn.learned { border-left-color: #1f83c9 } .turn .role { font-size: .82rem; color: var(--dim) }
.turn.masked pre { color: var(--dim); background: var(--mask) } .turn pre { padding: .25rem .4rem }
.verdict { margin: .6rem 0 0 } .verdict pre { background: var(--mask); padding: .25rem .4rem }
.filters fieldset { border: 0; padding: 0; margin: .25rem 0; display: flex; flex-wrap: wrap; gap: .2rem .4rem }
.filters legend { float: left; min-width: 4.5rem; color: var(--dim); padding: .15rem 0 }
.filters label { border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .7rem; cursor: pointer }
.filters label:has(:checked) { border-color: var(--fg); font-weight: 600 }
.filters input { position: absolute; opacity: 0 } .filters label:has(:focus-visible) { outline: 2px solid #1f83c9 }
.sample { color: var(--fg); white-space: nowrap; padding: .05rem .45rem; margin-right: .3rem; border-radius: 3px;
  font: 13px ui-monospace, monospace }
.sample.p4 { color: var(--p4-text) } .sample.p0 { border: 1px solid var(--line) }
.sample.mask { background: var(--mask); color: var(--dim) }
"""


def choose_episodes(folder: Path, count: int) -> list[Record]:
    """At most `count` episodes spread over training, solved and unsolved by turns, of as many problems as there are.

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


def run_decoder(folder: Path) -> Callable[[list[int]], str] | None:
    """What turns a run's tokens into text; None where the run kept no tokenizer."""
    kept = folder / "model" / "tokenizer"
    if not (kept / "tokenizer.json").is_file():
        return None
    from jaxrl.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(kept))
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pieces(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[tuple[int, str]]:
    """(number of tokens, text) of the shortest stretches that are whole characters.

    A character's bytes may be in several tokens, which are then one stretch. Bytes that are no character at all are
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


def viewer(runs: Sequence[tuple[str, Sequence[Record], Callable[[list[int]], str] | None]]) -> str:
    """Legend, filters and the episodes of runs: (name, episodes, what decodes their tokens)."""
    episodes = [(i, e) for i, (_, chosen, _) in enumerate(runs) for e in chosen]
    if not episodes:
        return "<p class=dim>No episodes were kept.</p>"
    statuses = list(dict.fromkeys(outcome(e) for _, e in episodes))
    solved = [n for n in ("solved", "not solved") if any(n == _solved(e) for _, e in episodes)]
    names = [name for name, _, _ in runs]
    filters = [("run", names), ("solved", solved), ("outcome", statuses)]
    blocks = []
    for i, e in episodes:
        kinds = f"run-{i} solved-{solved.index(_solved(e))} outcome-{statuses.index(outcome(e))}"
        name = names[i] if len(runs) > 1 else ""
        blocks.append(episode_block(e, name, runs[i][2], kinds, is_open=len(blocks) < 2))
    return f"<div class=viewer>{_key()}{_filters(filters)}{''.join(blocks)}</div>"


def _key() -> str:
    samples = "".join(f"<span class='sample {name}'>{html.escape(word)}</span>" for name, word in WORDS.items())
    return (
        f"<p class=dim>Sampled tokens by their probability under the sampler: {samples}<br>"
        "<span class='sample mask'>grey</span>: not in the loss (put in by the environment, or masked). Point at a "
        "token for its numbers.</p>"
    )


def _filters(filters: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Radio buttons for each kind of choice that there is, and the rules that hide the episodes not chosen."""
    fields, rules = [], []
    for kind, values in filters:
        if len(values) < 2:
            continue
        buttons = [f"<label><input type=radio name={kind} checked>all</label>"]
        for i, value in enumerate(values):
            buttons.append(f"<label><input type=radio name={kind} id=show-{kind}-{i}>{html.escape(value)}</label>")
            rules.append(f".viewer:has(#show-{kind}-{i}:checked) .episode:not(.{kind}-{i}) {{ display: none }}")
        fields.append(f"<fieldset><legend>{kind}</legend>{''.join(buttons)}</fieldset>")
    return f"<style>{''.join(rules)}</style><div class=filters>{''.join(fields)}</div>"


def _solved(episode: Record) -> str:
    return "solved" if episode["solved"] else "not solved"


def outcome(episode: Record) -> str:
    """The status of the verdict; without a verdict, of the episode."""
    return str((episode.get("verdict") or {}).get("status") or episode["status"])


def episode_block(
    episode: Record, run: str, decode: Callable[[list[int]], str] | None, kinds: str, is_open: bool
) -> str:
    """One episode, folded; `kinds` are the classes by which filters find it."""
    turns = episode.get("turns") or [{"role": "assistant", "text": episode["text"], "sampled": True}]
    sampled = sum(bool(t.get("sampled")) for t in turns)
    calls = [t["status"] for t in turns if t.get("status")]
    trained = episode.get("stage") != "evaluate"
    where = f"{episode.get('stage', '')} step {episode['step']}, {episode['problem']}"
    size = f"{episode['tokens']} tokens, {sampled} turn{'s' * (sampled != 1)}"
    size += f", {len(calls)} tool call{'s' * (len(calls) != 1)}" if calls else ""
    mark = f"<span class={'passed' if episode['solved'] else 'failed'}>{_solved(episode)}</span>"
    head = f"{mark} · {html.escape(f'{run} · ' if run else '')}<span class=dim>{html.escape(where)} · {size}</span>"
    return (
        f"<details class='episode {kinds}'{' open' if is_open else ''}><summary>{head}</summary>"
        f"<div class='turn masked'><span class=role>prompt</span>"
        f"<pre>{html.escape(episode['prompt'])}</pre></div>"
        f"{''.join(turn_block(t, decode, trained) for t in turns)}{result_block(episode)}</details>"
    )


def turn_block(turn: Record, decode: Callable[[list[int]], str] | None, trained: bool = True) -> str:
    """A turn with its role, whether it is in the loss (of a `trained` episode), its tool call's status, its tokens."""
    sampled = bool(turn.get("sampled"))
    learned = bool(turn.get("learned", sampled))
    tokens = turn.get("tokens") or []
    role = ROLES.get(turn["role"], str(turn["role"]))
    said = [role, *([f"{len(tokens)} token{'s' * (len(tokens) != 1)}"] if tokens else [])]
    said += [f"{turn['cached']} tokens before it cached"] if turn.get("cached") else []
    if trained:
        said.append("in the loss" if learned else "not in the loss")
    if turn.get("logprobs") and decode is None:
        said.append("not coloured: the run kept no tokenizer")
    status = ""
    if turn.get("status"):
        kind = "passed" if turn["status"] == "passed" else "failed"
        status = f" · tool call <span class={kind}>{html.escape(str(turn['status']))}</span>"
    return (
        f"<div class='turn {'learned' if learned else 'masked'}'><span class=role>{html.escape(' · '.join(said))}"
        f"{status}</span><pre>{turn_text(turn, decode)}</pre></div>"
    )


def turn_text(turn: Record, decode: Callable[[list[int]], str] | None) -> str:
    """The turn's tokens, coloured where they were sampled; its text where the tokens cannot be decoded."""
    tokens, logprobs = turn.get("tokens") or [], turn.get("logprobs") or []
    if decode is None or not tokens:
        return html.escape(turn["text"])
    if len(tokens) > FIRST + LAST:
        left_out = len(tokens) - FIRST - LAST
        first = turn | {"tokens": tokens[:FIRST], "logprobs": logprobs[:FIRST]}
        last = turn | {"tokens": tokens[-LAST:], "logprobs": logprobs[-LAST:]}
        between = f"<span class=role>\n… {left_out:,} tokens not shown …\n</span>"
        return turn_text(first, decode) + between + turn_text(last, decode)
    if len(logprobs) != len(tokens):
        return html.escape(decode(list(tokens)))
    spans, place = [], 0
    for count, text in pieces(tokens, decode):
        span = logprobs[place : place + count]
        total = sum(span)
        numbers = f"p {math.exp(min(total, 0.0)):.3g}, logprob {total:.3g}, token "
        numbers += " ".join(map(str, tokens[place : place + count]))
        spans.append(f"<span class={token_class(min(span))} title='{numbers}'>{html.escape(visible(text))}</span>")
        place += count
    return "".join(spans)


def token_class(logprob: float) -> str:
    """The class of CSS for a token's logprob."""
    if not isinstance(logprob, (int, float)) or math.isnan(logprob):
        return "unknown"
    return next(name for least, name in CLASSES if math.exp(min(logprob, 0.0)) >= least)


def visible(text: str) -> str:
    """Control characters, which a browser does not show, as their pictures (U+2400 and on)."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


def result_block(episode: Record) -> str:
    """Verdict with its first failing test, reward and its parts, attempts, weight versions."""
    verdict = episode.get("verdict") or {}
    tests = verdict.get("tests", [])
    passed = sum(t["status"] == "passed" for t in tests)
    kind = "passed" if episode["solved"] else "failed"
    lines = []
    if verdict:
        counts = f", {passed} of {len(tests)} tests passed" if tests else ""
        lines.append(f"verdict <span class={kind}>{html.escape(outcome(episode))}</span>{counts}")
    parts = ", ".join(f"{name} {value:.3g}" for name, value in episode["parts"].items())
    lines.append(f"reward <b>{episode['reward']:.3g}</b> <span class=dim>({html.escape(parts)})</span>")
    lines.append(f"episode {html.escape(str(episode['status']))}")
    if episode.get("attempts"):
        said = [
            f"{i}: {'solved' if solved else 'passes the public tests only' if public else 'fails public tests'}"
            for i, (public, solved, *_) in enumerate(episode["attempts"], 1)
        ]
        lines.append(f"programs {', '.join(said)}")
    versions = episode.get("weight_versions")
    if versions:
        lines.append(f"weight versions {', '.join(map(str, dict.fromkeys(versions)))}")
    failing = next((t for t in tests if t["status"] != "passed"), None)
    return f"<div class=verdict>{' · '.join(lines)}{failing_test(failing) if failing else ''}</div>"


def failing_test(test: Record) -> str:
    """What is known about the first test that failed."""
    lines = [f"{name}: {test[name]}" for name in ("message", "input", "expected", "actual") if test.get(name)]
    title = f"<span class=dim>first failing test: {html.escape(str(test['status']))}</span>"
    return f"<br>{title}" + (f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else "")
