"""Whether a patch resolves its task, by what the tests printed (the rules of SWE-bench's harness, 5.0.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxrl.tasks.repositories.logs import PARSERS, Results, suite_ran
from jaxrl.tasks.repositories.rows import Instance


class Grade(NamedTuple):
    """What became of a patch. `reason` says why there is no result, where there is none."""

    outcome: Literal["resolved", "unresolved", "not_found", "not_judged"]
    passed: tuple[int, int] = (0, 0)  # of FAIL_TO_PASS and of PASS_TO_PASS
    reason: str = ""

    @property
    def resolved(self) -> bool:
        return self.outcome == "resolved"


def grade(instance: Instance, outputs: Sequence[str], exit_code: int | None) -> Grade:
    """The grade of a run of all test commands.

    not_found, which counts as unresolved: nothing shows that tests ran; or a command failed while no test did, as where
    the output was forged.

    Args:
        exit_code: of the first command that failed, 0 if none did.
    """
    parser = PARSERS.get(instance.log_parser)
    if parser is None:
        return Grade("not_judged", reason=f"log parser {instance.log_parser} is not known")
    results = parser(outputs)
    if not results and not suite_ran(outputs):
        return Grade("not_found", reason="no test ran")
    if exit_code != 0 and not any(status in ("failed", "error") for status in results.values()):
        return Grade("not_found", reason=f"the tests ended with {exit_code}, though none of them failed")
    must_pass = sum(_passes(results, name, instance.fail_only, skipped=False) for name in instance.fail_to_pass)
    must_stay = sum(_passes(results, name, instance.fail_only, skipped=True) for name in instance.pass_to_pass)
    all_pass = (must_pass, must_stay) == (len(instance.fail_to_pass), len(instance.pass_to_pass))
    return Grade("resolved" if all_pass else "unresolved", (must_pass, must_stay))


def _passes(results: Results, name: str, fail_only: bool, skipped: bool) -> bool:
    """A test that is not in the log has passed only where logs have nothing but failures."""
    status = results.get(name)
    if fail_only:
        return status not in ("failed", "error")
    return status == "passed" or (skipped and status == "skipped")
