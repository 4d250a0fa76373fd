"""SWE-bench (Multimodal too) without Docker: patches judged in working trees of the sandbox.

    python -m jaxrl.swebench install                                   the tests' npm packages, once
    python -m jaxrl.swebench evaluate --tasks TASKS.jsonl --repositories CLONES --predictions PREDICTIONS.jsonl

--predictions gold judges the patches that solved the issues, empty none at all: a sound set-up resolves all of the
first and none of the second. near-misses are gold's without a part: those that resolve are named, as their tests do not
see that it is missing. OUT gets results.jsonl (a line as soon as a patch is judged; the same command carries on), logs/
and report.json in the form of the official harness, with not_judged_ids for what cannot be judged on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from jaxrl.config.command_line import at_least
from jaxrl.errors import UserError, command
from jaxrl.files import append_line, resume_lines, write_beside
from jaxrl.runs.log import Progress
from jaxrl.tasks.repositories.attempt import Repositories, attempt
from jaxrl.tasks.repositories.grade import Grade
from jaxrl.tasks.repositories.near import near_miss
from jaxrl.tasks.repositories.packages import install
from jaxrl.tasks.repositories.rows import Instance, read_instances, read_predictions

CACHE = Path("~/.cache/jaxrl/swebench")


def evaluate(
    instances: Sequence[Instance], patches: Mapping[str, str], repositories: Repositories, modules: Path, out: Path,
    workers: int = 2, wall_s: float = 300.0,
) -> dict[str, Grade]:  # fmt: skip
    """The grade of each patch; of instances without one, none. Those in OUT/results.jsonl are not judged again."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    wanted = {i.id: i for i in instances if i.id in patches}
    digests = {name: _digest(i, patches[name], wall_s) for name, i in wanted.items()}
    grades = _known(results, digests)
    left = [i for name, i in wanted.items() if name not in grades]

    def judge(instance: Instance) -> tuple[Grade, float]:
        start = time.perf_counter()
        log = out / "logs" / f"{instance.id}.log"
        found = attempt(instance, patches[instance.id], repositories, modules, wall_s=wall_s, log=log)
        return found, time.perf_counter() - start

    with Progress() as progress, ThreadPoolExecutor(workers) as threads:
        progress.stage("patches", len(wanted), len(wanted) - len(left))
        waiting = {threads.submit(judge, instance): instance for instance in left}
        try:
            for future in as_completed(waiting):
                name, (grade, seconds) = waiting[future].id, future.result()
                grades[name] = grade
                line = {"instance_id": name, "digest": digests[name], **grade._asdict(), "seconds": round(seconds, 2)}
                append_line(results, line)
                resolved = sum(g.resolved for g in grades.values())
                progress.update(len(grades), pass_rate=resolved / len(grades))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: grades[name] for name in wanted}


def _known(results: Path, digests: Mapping[str, str]) -> dict[str, Grade]:
    """Grades of an earlier try of the same patches and tests."""
    return {
        row["instance_id"]: Grade(row["outcome"], tuple(row["passed"]), row["reason"])
        for row in resume_lines(results)
        # What could not be judged may be by now.
        if digests.get(row["instance_id"]) == row["digest"] and row["outcome"] != "not_judged"
    }


def _digest(instance: Instance, patch: str, wall_s: float) -> str:
    """Of all that a grade depends on."""
    tests = instance.test_patch, instance.test_commands, instance.fail_to_pass, instance.pass_to_pass
    return hashlib.sha256(repr((patch, *tests, float(wall_s))).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def report(instances: Sequence[Instance], patches: Mapping[str, str], grades: Mapping[str, Grade]) -> dict[str, Any]:
    """Counts and ids as in the official harness' report (schema version 2)."""

    def ids(*outcomes: str) -> list[str]:
        return sorted(name for name, grade in grades.items() if grade.outcome in outcomes)

    submitted = sorted(i.id for i in instances if i.id in patches)
    empty = [name for name in submitted if not patches[name].strip()]
    lists = {
        "submitted_ids": submitted,
        "completed_ids": ids("resolved", "unresolved"),
        "incomplete_ids": sorted(i.id for i in instances if i.id not in patches),
        "empty_patch_ids": empty,
        "resolved_ids": ids("resolved"),
        "unresolved_ids": ids("unresolved", "not_found"),
        "error_ids": ids("not_found"),
        "not_judged_ids": ids("not_judged"),
    }
    counts = {
        "total_instances": len(instances), "submitted_instances": len(submitted),
        "completed_instances": len(lists["completed_ids"]), "resolved_instances": len(lists["resolved_ids"]),
        "unresolved_instances": len(lists["unresolved_ids"]), "empty_patch_instances": len(empty),
        "error_instances": len(lists["error_ids"]), "not_judged_instances": len(lists["not_judged_ids"]),
    }  # fmt: skip
    return counts | lists | {"schema_version": 2}


def _patches(predictions: str, instances: Sequence[Instance]) -> dict[str, str]:
    """Patches by instance. Raises UserError for predictions of none of the instances."""
    if predictions == "near-misses":
        return {i.id: patch for i in instances if (patch := near_miss(i.patch))}
    if predictions in ("gold", "empty"):
        return {i.id: i.patch if predictions == "gold" else "" for i in instances}
    patches = read_predictions(predictions)
    if not patches.keys() & {i.id for i in instances}:
        raise UserError(f"{predictions}: has predictions for none of the {len(instances)} tasks")
    return patches


@command()
def main(arguments: list[str]) -> int:
    """The command: the counts, with reasons for what has no result; 1 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m jaxrl.swebench", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("install", "evaluate"):
        sub = commands.add_parser(name)
        sub.add_argument("--modules", type=Path, default=CACHE / "modules", help="folder of the npm packages")
    sub.add_argument("--tasks", required=True, help="rows (.jsonl, .parquet, hub name) or a folder of task folders")
    sub.add_argument("--repositories", required=True, type=Path, help="folder of clones, OWNER__NAME or NAME")
    sub.add_argument("--predictions", required=True, help="gold, empty, near-misses, or a .jsonl of model_patch")
    sub.add_argument("--only", default="", help="instance ids, with commas between them")
    sub.add_argument("--workers", type=at_least(1), default=2, help="patches judged at a time (2)")
    sub.add_argument("--wall-s", type=at_least(1), default=300, help="of a test command (300)")
    sub.add_argument("--out", type=Path, help="folder of the results (runs/swebench_PREDICTIONS)")
    options = parser.parse_args(arguments)
    modules = options.modules.expanduser().absolute()
    if options.command == "install":
        print(f"installed in {modules}: {', '.join(install(modules)) or 'nothing new'}")
        return 0
    instances = read_instances(options.tasks)
    if options.only:
        names = set(options.only.split(","))
        if unknown := sorted(names - {i.id for i in instances}):
            raise UserError(f"--only: there is no task {unknown[0]!r}")
        instances = [i for i in instances if i.id in names]
    patches = _patches(options.predictions, instances)
    out = options.out or Path("runs") / f"swebench_{Path(options.predictions).stem}"
    repositories = Repositories(options.repositories.expanduser(), CACHE.expanduser() / "files")
    grades = evaluate(instances, patches, repositories, modules, out, options.workers, options.wall_s)
    summary = report(instances, patches, grades)
    write_beside(out / "report.json", json.dumps(summary, indent=2) + "\n")
    for reason, count in Counter(g.reason for g in grades.values() if g.reason).most_common():
        print(f"{count} without a result: {reason}" if count > 1 else f"without a result: {reason}")
    if options.predictions == "near-misses":
        if left := len(instances) - len(patches):
            print(f"{left} of {len(instances)} patches change too little to leave out a part")
        print("resolved without a part:", ", ".join(summary["resolved_ids"]) or "none")
    print(f"resolved {summary['resolved_instances']} of {summary['submitted_instances']} ({out / 'report.json'})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
