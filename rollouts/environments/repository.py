"""An agent in a repository: one command a turn, its output as the next message, until it submits its change.

The tree is a private copy of the repository at the commit of the issue (sandbox/checkout.py). It has neither git's
history nor the tests that judge. docs/reference/repository.md has the commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from posixpath import basename, normpath
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt

from rollouts.blocks import BLOCK, Edit, FormatError, apply_edits
from rollouts.engine import UnsupportedError
from rollouts.environments.dialogue import Dialogue, DialogueEnvironment, EpisodeOverError
from rollouts.environments.interpreter import shortened
from rollouts.episode import Submission
from rollouts.pictures import described, rendered
from rollouts.unified import diff_lines, write_patch
from sandbox.checkout import Checkout, CheckoutError
from sandbox.checkouts import WorkingTree
from sandbox.layers import IsolationError

TREE = "tree"  # in Problem.meta: a Tree
TOOL_S = 30.0  # of a command that only reads or writes
LONGEST_FILE_KB = 1024  # that is opened or edited
LONGEST_PATH = 1024  # bytes
HITS_KB = 256
OPEN_LINES = 100
# A file that decides how the tests run: a change of it could make them pass whatever the code does.
PROTECTED = (
    "conftest.py", "pytest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml",
    "sitecustomize.py", "usercustomize.py", "pytest/*", "_pytest/*", "pluggy/*", "test*/__init__.py", "package.json",
    "jasmine*.json", "jasmine*.js", "jasmine*.mjs", ".mocharc*", "jest.config.*", "vitest.config.*", "karma.conf.*",
    ".babelrc*", "node_modules", "node_modules/*",
)  # fmt: skip
INSTRUCTION = """You work in a checkout of the repository. Solve the issue by editing its files. Each answer ends with \
one command; its output is the next message. The commands:

open PATH [LINE]      shows a file from that line on, or what is in a folder
search TEXT [PATH]    the lines that have this text; a text with blanks stands in double quotes
run                   runs the repository's tests
image N               describes image N of the issue
render PATH           describes the picture that an SVG or HTML file gives
submit                ends your work

To edit, end the answer with blocks of this form:

```python
### path/of/the/file.py
<<<<<<< SEARCH
lines of the file, as they are, with their indentation
=======
lines to put in their place
>>>>>>> REPLACE
```

The lines to search for are replaced wherever they occur in the file. To make a new file, search for one empty line."""


@dataclass(frozen=True)
class Tree:
    """What an episode gets of a repository. None of it is what judges.

    Args:
        files: gives the folder with the files at the issue's commit, or is their contents by path. May raise OSError.
        read_only: folders that are linked in, such as node_modules.
        tests: commands of the tests that the model may run, each through a shell.
        images: of the issue, by name: the file, or its contents, or None where it is not here. A name in .txt is a
            picture in characters, which is shown as it is.
    """

    files: Callable[[], str] | Mapping[str, str]
    read_only: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    images: Mapping[str, str | bytes | None] = field(default_factory=dict)


@dataclass
class Settings:
    """Commands in a repository until one submits; what their outputs may be."""

    name: str = ""
    max_turns: Annotated[int, Ge(1)] = 30  # commands of an episode
    output_characters: Annotated[int, Ge(80)] = 4000  # longer output is cut in its middle, with a line that says so
    open_lines: Annotated[int, Ge(1)] = OPEN_LINES  # of a file that are shown at once
    search_hits: Annotated[int, Ge(1)] = 40  # lines that are shown
    run_s: Annotated[float, Gt(0)] = 120.0  # of each test command
    malformed_penalty: Annotated[float, Ge(0)] = 0.0  # off the reward, for each answer that is not a command that fits
    protected: tuple[str, ...] = PROTECTED  # patterns of paths or names of files that cannot be edited
    trees: Annotated[int, Ge(1)] = 16  # working trees of a run at a time, each with its files in memory


class Command(NamedTuple):
    """What an answer asks for. `edits` are those of command "edit"."""

    name: str
    arguments: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()


class RefusedError(ValueError):
    """A command that is malformed or does not fit; the argument is what the model is told."""


USES = {  # least and most arguments
    "open": (1, 2), "search": (1, 2), "run": (0, 0), "image": (1, 1), "render": (1, 1), "submit": (0, 0),
}  # fmt: skip


def parse(text: str) -> Command:
    """The command at the end of an answer: edit blocks, or a line. Raises RefusedError.

    Blocks count where nothing but blanks follows the last one; the ones before it are part of the same edit.
    """
    blocks = list(BLOCK.finditer(text))
    if blocks and not text[blocks[-1].end() :].strip():
        return Command("edit", edits=tuple(Edit(*found.groups()) for found in blocks))
    line = (text.strip().splitlines() or [""])[-1].strip().strip("`")
    name, _, rest = line.partition(" ")
    if name not in USES:
        raise RefusedError(f"the last line is not a command ({', '.join(USES)}), and there is no edit block")
    try:
        words = tuple(shlex.split(rest))
    except ValueError:  # a quote that does not end, as in it's
        words = (rest.strip(),)
    least, most = USES[name]
    if not least <= len(words) <= most:
        hint = "; a text with blanks stands in double quotes" if name == "search" else ""
        count = f"{least}" if least == most else f"{least} to {most}"
        raise RefusedError(f"{name} takes {count} arguments, not {len(words)}{hint}")
    return Command(name, words)


@dataclass
class Work:
    """An episode's state."""

    files: str | Mapping[str, str] = field(default_factory=dict)  # folder, or contents by path, at the commit
    before: dict[str, str] = field(default_factory=dict)  # contents at that commit of files that were edited
    after: dict[str, str] = field(default_factory=dict)  # their contents now
    refused: int = 0

    @property
    def patch(self) -> str:
        """The change as git writes it, of what edits did; what tests leave in the tree is not part of it."""
        return write_patch(self.before, self.after)


class Repository(DialogueEnvironment):
    """The model works in the tree of meta["tree"]. What it has edited is judged, submitted or not, as a patch.

    The submission's state is the patch; its program that in the text, as the task extracts it.
    """

    settings: Settings

    async def converse(self, dialogue: Dialogue) -> None:
        tree = dialogue.problem.meta.get(TREE)
        if tree is None:
            raise UnsupportedError(
                f"problem {dialogue.problem.id} has no repository, which environment 'repository' needs"
            )
        dialogue.state = Work()
        async with contextlib.AsyncExitStack() as stack:
            place = await dialogue.tool(self._opened(stack, tree, dialogue.state))
            for turn in range(self.settings.max_turns):
                said = await self._answered(dialogue, place, tree, await dialogue.sample())
                if said is None:
                    return
                if turn < self.settings.max_turns - 1:
                    dialogue.reply(shortened(said, self.settings.output_characters))
        raise EpisodeOverError("out_of_turns")

    async def _opened(self, stack: contextlib.AsyncExitStack, tree: Tree, work: Work) -> WorkingTree:
        try:
            work.files = tree.files if isinstance(tree.files, Mapping) else await asyncio.to_thread(tree.files)
            return await stack.enter_async_context(self.services.trees.open(work.files, tree.read_only))
        except (CheckoutError, IsolationError, OSError) as error:
            raise EpisodeOverError("sandbox_error", str(error)) from None

    async def _answered(self, dialogue: Dialogue, place: WorkingTree, tree: Tree, answer: str) -> str | None:
        """What the command of an answer gives; None for submit."""
        work: Work = dialogue.state
        try:
            command = parse(answer)
            if command.name == "submit":
                return None
            return await dialogue.tool(place.call(perform, command, work, tree, self.settings))
        except RefusedError as error:
            if self.settings.malformed_penalty:
                work.refused += 1
                dialogue.parts["malformed"] = -self.settings.malformed_penalty * work.refused
            return f"refused: {error}"
        except CheckoutError as error:
            raise EpisodeOverError("sandbox_error", str(error)) from None

    def submission(self, dialogue: Dialogue) -> Submission:
        """The patch of all edits so far."""
        return self.submit(dialogue.problem, dialogue.text, dialogue.state.patch)


def make_environment(**fields: Any) -> Repository:
    return Repository(**fields)


# --- commands, in the tree


def perform(checkout: Checkout, command: Command, work: Work, tree: Tree, settings: Settings) -> str:
    """What a command gives. Raises RefusedError for one that does not fit the tree."""
    name, words = command.name, command.arguments
    if name == "open":
        return show(checkout, inside(words[0]), number(words[1]) if len(words) > 1 else 1, settings.open_lines)
    if name == "search":
        return search(checkout, words[0], inside(words[1]) if len(words) > 1 else ".", settings.search_hits)
    if name == "edit":
        return edit(checkout, command.edits, work, settings.protected)
    if name == "run":
        return run_tests(checkout, tree.tests, settings.run_s)
    if name == "image":
        return image(tree.images, number(words[0]))
    return rendered(checkout, inside(words[0]))


def decides_tests(path: str, protected: Sequence[str] = PROTECTED) -> bool:
    """Whether a change of this file could make tests pass whatever the code does."""
    return any(fnmatch(path, pattern) or fnmatch(basename(path), pattern) for pattern in protected)


def inside(path: str) -> str:
    """The path in normal form. Raises RefusedError for one that leads out of the tree."""
    normal = normpath(path.strip() or ".")
    if not normal.isprintable():
        raise RefusedError("a path has characters that cannot be printed")
    if len(normal.encode()) > LONGEST_PATH:
        raise RefusedError(f"a path has more than {LONGEST_PATH} bytes")
    if normal.startswith(("/", "..")) or ".git" in normal.split("/"):
        raise RefusedError(f"{path} is not in the repository; paths are relative to its top folder")
    return normal


def number(word: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise RefusedError(f"{word} is not a number; images and lines count from 1")
    return max(int(word[:9]), 1)


# A file in a folder that is a link counts as a link: git would not change it.
_LOOK = """if [ -d "$1" ]; then echo folder; exec ls -Ap -- "$1"; fi
if [ "$(realpath -m -- "$1")" != "$PWD/$1" ]; then echo link; elif [ -f "$1" ]; then echo file; else echo none; fi
if [ -f "$1" ]; then exec cat -- "$1"; fi"""


def look(checkout: Checkout, path: str) -> tuple[str, str]:
    """(folder, link, file or none; its entries or its text). Raises RefusedError for a file that is not text."""
    ran = checkout.run(["sh", "-c", _LOOK, "sh", path], TOOL_S, LONGEST_FILE_KB)
    if ran.status != "finished":
        raise RefusedError(f"{path} is longer than {LONGEST_FILE_KB} kB")
    kind, _, text = ran.output.partition("\n")
    if kind in ("file", "link") and ("\0" in text or "\ufffd" in text):
        raise RefusedError(f"{path} is not text in UTF-8")
    return kind, text


def show(checkout: Checkout, path: str, line: int, most: int) -> str:
    """Lines as they are, so that an edit can search for them; a line above says which."""
    kind, text = look(checkout, path)
    if kind == "none":
        raise RefusedError(f"there is no {path}; open . shows the top folder")
    if kind == "folder":
        return f"{path}, {len(text.splitlines())} entries:\n{text.rstrip()}"
    return window(path, text, line, most)


def window(path: str, text: str, line: int, most: int) -> str:
    """The text's lines from this one on, below a line that says which. Carriage returns at their ends are left out."""
    lines = text.replace("\r\n", "\n").split("\n")[: None if text and not text.endswith("\n") else -1]
    first = min(line, max(len(lines), 1))
    shown = lines[first - 1 : first - 1 + most]
    return f"{path}, lines {first} to {first + len(shown) - 1} of {len(lines)}:\n" + "\n".join(shown)


def search(checkout: Checkout, text: str, path: str, most: int) -> str:
    """PATH:LINE:text of each hit; binary files and what is linked in are left out."""
    ran = checkout.run(["grep", "-rnIF", "-e", text, "--", path], TOOL_S, HITS_KB)
    if ran.status == "finished" and ran.exit_code not in (0, 1):
        raise RefusedError(f"there is no {path}; a text with blanks stands in double quotes")
    hits = [line.removeprefix("./")[:300] for line in ran.output.splitlines()]
    if not hits:
        return f"{text!r} does not occur in {path}"
    more = "" if ran.status == "finished" else " or more"
    left = f"\n({len(hits)}{more} lines; the first {most} are shown)" if len(hits) > most or more else ""
    return "\n".join(hits[:most]) + left


def edit(checkout: Checkout, edits: Sequence[Edit], work: Work, protected: Sequence[str]) -> str:
    """Applies blocks to the files, all or none of them; the diff."""
    edits = [Edit(inside(path), _unix(search), _unix(replace)) for path, search, replace in edits]
    found = {}
    for path in dict.fromkeys(block.path for block in edits):
        if decides_tests(path, protected):
            raise RefusedError(f"{path} decides how the tests run; it cannot be edited")
        kind, text = look(checkout, path)
        if kind in ("folder", "link"):
            raise RefusedError(f"{path} is a {kind}, not a file")
        if kind == "file":
            found[path] = text
    files = {path: _unix(text) for path, text in found.items()}
    try:
        changed = apply_edits(files, edits)
    except FormatError as error:
        raise RefusedError(f"{error}; nothing is changed") from None
    contents = {path: with_ends_of(found.get(path, ""), content) for path, content in changed.items()}
    before = {path: original(work.files, path) for path in contents if path not in work.after}
    _write(checkout, contents)
    work.before |= {path: content for path, content in before.items() if content is not None}
    work.after |= contents
    return edited(files, changed)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def edited(files: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What an edit has changed."""
    return "\n".join(f"edited {path}\n{diff_lines(files.get(path, ''), content)}" for path, content in new.items())


def original(files: str | Mapping[str, str], path: str) -> str | None:
    """A file's text as it is at the issue's commit, whatever tests have made of it since; None if it is not there."""
    if not isinstance(files, str):
        return files.get(path)
    place = Path(files).resolve() / path
    try:
        inside_the_tree = place.is_file() and place.resolve() == place
        return place.read_bytes().decode("utf-8", "replace") if inside_the_tree else None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from None


def with_ends_of(old: str, new: str) -> str:
    """`new`, whose lines end with line feeds, with the line ends that its lines have in `old`.

    Lines that are not in `old` end as its first line does.
    """
    if "\r\n" not in old:
        return new
    before, after = _unix(old).split("\n"), new.split("\n")
    ends = ["\r" if line.endswith("\r") else "" for line in old.split("\n")]
    ends[-1] = ends[0]  # the last line has none, unless others follow it now
    made = ends[:1] * len(after)
    for i, j, length in difflib.SequenceMatcher(None, before, after).get_matching_blocks():
        made[j : j + length] = ends[i : i + length]
    return "\n".join(line + end for line, end in zip(after, [*made[:-1], ""]))


_PLACE = """new=$1; shift
for path; do
  if [ -d "$path" ]; then echo "$path is a folder"; exit 1; fi
  mkdir -p -- "$(dirname -- "$path")" || exit 1
done
number=0
for path; do
  if [ -e "$path" ]; then chmod --reference="$path" "$new/$number"; fi
  mv -fT -- "$new/$number" "$path" || exit 1
  number=$((number + 1))
done"""


def _write(checkout: Checkout, contents: Mapping[str, str]) -> None:
    """All files are written beside the tree first, where the disk may be full; then all are put in place."""

    def done(*command: str, stdin: str = "") -> str:
        ran = checkout.run(command, TOOL_S, stdin=stdin)
        if ran.exit_code != 0:  # None: stopped
            raise RefusedError(f"the files cannot be written: {ran.output.strip()[-200:]}; nothing is changed")
        return ran.output

    for path in contents:
        if any(str(folder) in contents for folder in Path(path).parents):
            raise RefusedError(f"{path} is in a folder that is a file of the same edit; nothing is changed")
    new = done("mktemp", "-d", "../edit.XXXXXX").strip()
    try:
        for number, content in enumerate(contents.values()):
            done("sh", "-c", 'cat > "$1"', "sh", f"{new}/{number}", stdin=content)
        done("sh", "-c", _PLACE, "sh", new, *contents)
    finally:
        checkout.run(["rm", "-rf", "--", new], TOOL_S)


def run_tests(checkout: Checkout, tests: Sequence[str], wall_s: float) -> str:
    """What the tests of the tree print, and how they end."""
    if not tests:
        return "this repository has no tests that can be run"
    said = []
    for command in tests:
        ran = checkout.run(["sh", "-c", command], wall_s, LONGEST_FILE_KB)
        end = f"ended with {ran.exit_code}" if ran.status == "finished" else f"stopped: {ran.status}"
        said.append(f"{ran.output.strip()}\n({end})")
    return "\n".join(said)


def image(images: Mapping[str, str | bytes | None], wanted: int) -> str:
    """An image of the issue in words."""
    if wanted > len(images):
        raise RefusedError(f"there is no image {wanted}: the issue has {len(images)}")
    name, path = [*images.items()][wanted - 1]
    if path is None:
        return f"image {name} is not on this machine"
    try:
        data = path if isinstance(path, bytes) else Path(path).read_bytes()
    except OSError as error:
        return f"image {name} cannot be read: {error.strerror}"
    return data.decode(errors="replace") if name.endswith(".txt") else described(name, data)
