"""The sentences follow from the numbers, whoever wins."""

from __future__ import annotations

import math

import pytest

from nestling.report import compare, read_results
from nestling.report.summary import headline, reading_sentence, sentences

from .conftest import MATRICES, RUN


def test_the_numbers_of_the_comparison(write):
    final, forgetting, learned = compare(read_results(write(error=0.03)))
    assert final.values == {"hope": 2.5, "transformer": 3.0}
    assert forgetting.values == {"hope": 0.5, "transformer": 2.0}
    assert learned.values == {"hope": 2.25, "transformer": 2.0}
    # Two cells of each of two matrices, averaged over two domains.
    assert final.error == pytest.approx(0.03 * math.sqrt(4) / 2)
    # Forgetting: last and own measurement of the only domain but the last, of both models.
    assert forgetting.error == pytest.approx(0.03 * math.sqrt(4))
    assert [c.ahead for c in (final, forgetting, learned)] == ["hope", "hope", "transformer"]


def test_the_headline_says_who_wins_and_why(write):
    results = read_results(write())
    assert headline(results, compare(results)) == (
        "Hope ends ahead of Transformer++: after the last domain it needs 2.50 bits per byte on "
        "average over all 2 domains, Transformer++ 3.00. Hope forgets less; Transformer++ learns "
        "new text better."
    )


def test_the_headline_says_plainly_that_hope_loses(write):
    swapped = {"hope": MATRICES["transformer"], "transformer": MATRICES["hope"]}
    results = read_results(write(swapped))
    comparisons = compare(results)
    assert headline(results, comparisons) == (
        "Transformer++ ends ahead of Hope: after the last domain it needs 2.50 bits per byte on "
        "average over all 2 domains, Hope 3.00. Transformer++ forgets less; Hope learns new text "
        "better."
    )
    said = sentences(results, comparisons)
    assert said[0] == (
        "Final average: Transformer++ is better, Hope is worse. Hope 3.00, Transformer++ 2.50 bits "
        "per byte in the end (difference 0.50, standard error 0.01)."
    )
    assert said[1].startswith("Forgetting: Transformer++ forgets less than Hope.")
    assert said[3] == (
        "Hope lost most on a<b> (+2.00 bits per byte); Transformer++ lost most on a<b> (+0.50 bits "
        "per byte)."
    )
    assert "Hope trained for 30 s" in said[4]
    assert said[4].endswith("Transformer++ took 10 s for: 3.0 times as long.")


def test_a_difference_within_the_error_is_called_level(write):
    results = read_results(write(error=0.3))
    comparisons = compare(results)
    assert [c.ahead for c in comparisons] == [None, "hope", None]
    assert headline(results, comparisons) == (
        "Hope and Transformer++ end level: 2.50 and 3.00 bits per byte on average over all 2 "
        "domains, no more apart than chance allows. Hope forgets less; both learn new text alike."
    )
    assert sentences(results, comparisons)[2].startswith("Just learned: level.")
    equal = {"hope": MATRICES["hope"], "transformer": MATRICES["hope"]}
    results = read_results(write(equal, error=0.0))
    assert {c.ahead for c in compare(results)} == {None}


def test_worse_than_guessing_is_said(write):
    lost = {"hope": [[8.0, 8.0], [2.0, 7.0], [9.0, 2.0]], "transformer": MATRICES["transformer"]}
    results = read_results(write(lost))
    assert sentences(results, compare(results))[4] == (
        "Blind guessing costs 8 bits per byte. Confidently wrong in the end, and worse than that: "
        "Hope on a<b>."
    )


def test_reading_on_is_said_from_the_numbers(write):
    assert reading_sentence(read_results(write())) == (
        "From the first piece to the last, on average, Hope goes from 3.00 to 2.00 bits per byte "
        "(1.00 better) and Transformer++ goes from 3.00 to 2.00 bits per byte (1.00 better)."
    )


def test_what_another_seed_could_do_counts(write):
    run = {**RUN, "seed_spread": {"Final average": 0.3, "Forgetting": 0.1}}
    final, forgetting, learned = compare(read_results(write(run=run)))
    assert final.error == pytest.approx(math.sqrt(0.01**2 + 2 * 0.3**2))
    assert [c.ahead for c in (final, forgetting, learned)] == [None, "hope", "transformer"]


def test_an_unfinished_run_has_no_winner(write):
    results = read_results(write(keep=3 + 8 + 15))
    assert results.phases_done() == 1
    assert compare(results) == []
    assert headline(results, []).startswith("This run is unfinished: 1 of 2 domains")
    assert sentences(results, []) == [
        "Cost: Hope trained for 30 s on the tokens that Transformer++ took 10 s for: 3.0 times as "
        "long."
    ]


def test_one_domain_cannot_be_forgotten(write):
    run = {**RUN, "domains": RUN["domains"][:1]}
    results = read_results(write({"hope": [[8.0], [2.0]], "transformer": [[8.0], [2.5]]}, run=run))
    assert [c.name for c in compare(results)] == ["Final average", "Just learned"]


def test_only_two_models_are_compared(write):
    run = {**RUN, "models": RUN["models"][:1]}
    with pytest.raises(ValueError, match=r"two models to compare, got \['hope'\]"):
        compare(read_results(write(run=run)))
