"""The metrics against matrices worked out by hand, and the laws between them."""

from __future__ import annotations

import numpy as np
import pytest

from nestling.continual import (
    average_incremental,
    backward_transfer,
    errors,
    final_average,
    forgetting,
    forgetting_by_domain,
    forward_transfer,
    intransigence,
    online_average,
    plasticity,
    savings,
)

BEFORE = [8.0, 8.0, 7.0, 9.0]
R = [
    [2.0, 7.0, 6.5, 8.5],
    [3.0, 1.5, 7.5, 9.0],
    [2.5, 4.0, 1.0, 9.5],
    [5.0, 3.5, 0.5, 2.0],
]


def test_numbers_worked_out_by_hand():
    assert final_average(R) == 11.0 / 4
    assert plasticity(R) == (2.0 + 1.5 + 1.0 + 2.0) / 4
    # Best moments: 2.0 (its own), 1.5 (its own), 1.0 (its own); the last domain does not count.
    assert forgetting_by_domain(R) == [3.0, 2.0, -0.5]
    assert forgetting(R) == 1.5
    assert backward_transfer(R) == -1.5
    # Before its turn: 7.0 against 8.0, 7.5 against 7.0, 9.5 against 9.0.
    assert forward_transfer([BEFORE, *R]) == pytest.approx(0.0)


def test_the_row_before_training_changes_nothing_else():
    for metric in (final_average, plasticity, forgetting, backward_transfer):
        assert metric([BEFORE, *R]) == metric(R)
    # Also where the untrained model was the best: only phases from the domain's own on count.
    lucky = [[0.1, 0.1], [2.0, 5.0], [3.0, 2.0]]
    assert forgetting(lucky) == 1.0


def test_the_best_moment_is_looked_for_after_the_own_phase():
    # Domain 1 is best known after phase 2: forgetting counts from there, transfer from its own.
    assert forgetting([[3.0, 9, 9], [2.0, 1.0, 9], [2.5, 1.0, 1.0]]) == (0.5 + 0.0) / 2
    assert backward_transfer([[3.0, 9, 9], [2.0, 1.0, 9], [2.5, 1.0, 1.0]]) == (0.5 + 0.0) / 2


def test_forgetting_is_at_least_minus_backward_transfer():
    random = np.random.default_rng(0)
    for n in (2, 3, 7):
        losses = random.uniform(0, 8, (n, n))
        assert forgetting(losses) >= -backward_transfer(losses)
        # A constant shift of all losses is no forgetting.
        assert forgetting(losses + 1.0) == pytest.approx(forgetting(losses))
        assert final_average(losses + 1.0) == pytest.approx(final_average(losses) + 1.0)


def test_one_domain_cannot_be_forgotten():
    assert (forgetting([[2.0]]), backward_transfer([[2.0]]), plasticity([[2.0]])) == (0.0, 0.0, 2.0)
    assert forward_transfer([[8.0], [2.0]]) == 0.0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0]], "expected 2 rows for 2 domains.*got 1"),
        ([[1.0], [1.0], [1.0]], "expected 1 rows.*got 3"),
        (np.array([1.0, 2.0]), "shape"),
        ([[1.0, 2.0], [float("nan"), 2.0]], "nan at row 1, column 0"),
        ([[1.0, float("inf")], [1.0, 2.0]], "inf at row 0, column 1"),
    ],
)
def test_what_is_no_such_matrix_is_refused(matrix, message):
    for metric in (final_average, plasticity, forgetting, backward_transfer):
        with pytest.raises(ValueError, match=message):
            metric(matrix)


def test_forward_transfer_needs_the_row_before_training():
    with pytest.raises(ValueError, match="row before training"):
        forward_transfer(R)


def test_numbers_beyond_the_last_row_by_hand():
    # Phase means over what was learned: 2, (3 + 1.5) / 2, (2.5 + 4 + 1) / 3, 11 / 4.
    assert average_incremental(R) == (2.0 + 2.25 + 2.5 + 2.75) / 4
    assert average_incremental([BEFORE, *R]) == average_incremental(R)
    assert intransigence(R, [1.0, 1.5, 1.0, 1.0]) == (1.0 + 0 + 0 + 1.0) / 4
    assert online_average([4.0, 1.0, 1.0], [1, 2, 1]) == (4 + 2 + 1) / 4
    # Below 2.5 at place 4 the first time, at place 1 the second.
    assert savings([8.0, 6.0, 5.0, 3.0, 2.0], [4.0, 2.0], criterion=2.5) == 0.75
    assert savings([8.0, 2.0], [4.0, 3.0, 2.0], criterion=2.5) == -1.0
    assert savings([8.0, 2.0], [1.0, 3.0], criterion=2.5) == 1.0
    assert savings([8.0, 2.0], [4.0, 3.0], criterion=2.5) is None
    assert savings([2.0, 2.0], [4.0, 2.0], criterion=2.5) is None


def test_accuracies_as_errors_have_the_signs_of_the_literature():
    accuracy = [[0.75, 0.0], [0.5, 1.0]]
    assert final_average(errors(accuracy)) == 1 - 0.75
    assert forgetting(errors(accuracy)) == 0.25
    assert backward_transfer(errors(accuracy)) == -0.25
    with pytest.raises(ValueError, match="not per cent"):
        errors([[75.0]])


def test_curves_and_references_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="joint: expected 4"):
        intransigence(R, [1.0])
    with pytest.raises(ValueError, match="positive counts"):
        online_average([1.0], [0])
    with pytest.raises(ValueError, match="one for each count"):
        online_average([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="at least one loss"):
        savings([], [1.0], criterion=1.0)
