"""The npm packages that repositories' tests need, by instance; installed once, never while a patch is judged.

Versions are fixed, and scripts of packages do not run. A repository's own package.json would bring hundreds of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from jaxrl.errors import UserError
from jaxrl.files import write_beside
from jaxrl.tasks.repositories.rows import Instance


class Packages(NamedTuple):
    """A set of packages, and the numbers of the instances that it serves."""

    repo: str
    numbers: range
    packages: str


SETS = {
    "marked-old": Packages(
        "markedjs/marked", range(1600),
        "jasmine@3.4.0 @markedjs/html-differ@2.0.1 html-differ@1.3.4 jasmine2-custom-message@0.9.3 front-matter@2.3.0 "
        "glob-to-regexp@0.4.1 commonmark@0.29.0 markdown-it@8.4.2",
    ),
    "marked": Packages(
        "markedjs/marked", range(1600, 10_000),
        "jasmine@3.6.4 @markedjs/html-differ@3.0.4 front-matter@4.0.2 commonmark@0.29.3 markdown-it@12.0.2 "
        "titleize@2.1.0 node-fetch@2.6.1",
    ),
    "prism-old": Packages(
        "PrismJS/prism", range(3150),
        "mocha@6.2.3 chai@4.2.0 yargs@13.2.2 jsdom@13.2.0 regexpp@3.1.0 refa@0.7.1 scslre@0.1.6 simple-git@1.107.0",
    ),
    "prism": Packages(
        "PrismJS/prism", range(3150, 10_000),
        "mocha@9.2.2 chai@4.2.0 yargs@13.3.2 jsdom@16.7.0 regexpp@3.2.0 refa@0.9.1 regexp-ast-analysis@0.2.4 "
        "scslre@0.1.6 prettier@2.4.1",
    ),
}  # fmt: skip


def package_set(instance: Instance) -> str | None:
    """The name of the set that an instance's tests need; None where there is no list."""
    for name, packages in SETS.items():
        if packages.repo == instance.repo and instance.number in packages.numbers:
            return name
    return None


def install(modules: Path) -> list[str]:
    """Installs the sets that are not there yet, each in a folder; their names. Raises UserError where npm cannot."""
    if shutil.which("npm") is None:
        raise UserError("there is no npm on this machine: install Node.js (node and npm)")
    done = []
    for name, packages in SETS.items():
        folder = modules / name
        if (folder / "installed.json").is_file():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true}\n')
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
        ran = subprocess.run([*command, *packages.packages.split()], cwd=folder, capture_output=True, text=True)
        if ran.returncode:
            raise UserError(f"npm could not install {name}: {ran.stderr.strip()[-300:]}")
        write_beside(folder / "installed.json", json.dumps(packages.packages.split()) + "\n")
        done.append(name)
    return done
