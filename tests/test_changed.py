"""Which test files `make check` runs for a change."""

from __future__ import annotations

from changed import our_files, ranks


def test_the_nearest_tests_come_first():
    found = ranks({"sandbox/verdict.py"}, our_files())
    assert found["tests/sandbox/test_pool.py"] == 1  # imports it, in the folder that mirrors it
    assert "tests/models/test_attention.py" not in found


def test_a_changed_test_runs_with_those_that_use_it():
    found = ranks({"tests/training/test_train.py"}, our_files())
    assert found["tests/training/test_train.py"] == 0 and found["tests/training/test_sidecar_training.py"] == 2
    assert ranks({"README.md"}, our_files()) == {}


def test_other_files_are_tested_by_the_folder_that_mirrors_theirs():
    found = ranks({"jaxrl/reports/templates/page.html"}, our_files())
    assert found and all(file.startswith("tests/reports/") and rank == 3 for file, rank in found.items())
