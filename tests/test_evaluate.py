"""pass@k against a count over all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest

from jaxrl.evaluate import pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)
