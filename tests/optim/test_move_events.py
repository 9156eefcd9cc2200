"""Every period's end across contexts is an event with the parameters before and after."""

import pytest
import torch
from torch.nn import Parameter

from nestling.levels import Level
from nestling.optim import LevelwiseOptimizer


def optimizer():
    fast, slow = Parameter(torch.zeros(2)), Parameter(torch.zeros(3))
    levels = [(Level(1), {"fast": fast}), (Level(8), {"slow": slow})]
    made = LevelwiseOptimizer(levels, lambda named: torch.optim.SGD(named.values(), lr=1.0),
                              clip=None)  # fmt: skip
    return made, fast, slow


def run(made, fast, slow, steps, on_move=None):
    for _ in range(steps):
        (fast.sum() + 2 * slow.sum()).backward()
        made.step(tokens=4, on_move=on_move)


def test_every_move_is_told_where_it_happens():
    made, fast, slow = optimizer()
    moves = []
    run(made, fast, slow, 4, moves.append)
    assert [(move.tokens, move.level.period) for move in moves] == [
        (4, 1), (8, 1), (8, 8), (12, 1), (16, 1), (16, 8),
    ]  # fmt: skip
    first, second = (move for move in moves if move.level.period == 8)
    assert (first.before["slow"].tolist(), first.after["slow"].tolist()) == ([0.0] * 3, [-2.0] * 3)
    assert torch.equal(second.before["slow"], first.after["slow"])
    assert torch.equal(second.after["slow"], slow)


def test_watching_changes_nothing_and_an_answer_is_taken():
    plain, watched = optimizer(), optimizer()
    run(*plain, 4)
    run(*watched, 4, lambda move: None)
    assert torch.equal(plain[2], watched[2])
    assert torch.equal(plain[1], watched[1])
    held = optimizer()
    run(*held, 4, lambda move: move.before if move.level.period == 8 else None)
    assert held[2].tolist() == [0.0] * 3
    assert torch.equal(held[1], plain[1])


@pytest.mark.parametrize("answer", [{"other": torch.zeros(3)}, {"slow": torch.zeros(2)}])
def test_an_answer_that_does_not_fit_is_named(answer):
    made, fast, slow = optimizer()
    with pytest.raises(ValueError, match=r"on_move: .* of the level of period"):
        run(made, fast, slow, 2, lambda move: answer)
