"""Surprise, dreams and the slow level against what is worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

from nestling.levels import Consolidation, Shift, SlowLevel, Surprise, dream
from nestling.models import build
from nestling.storage.packing import pack, unpack


class Chain(nn.Module):
    """A language model that is one table: logits of the next token from the last one."""

    def __init__(self, vocabulary: int = 5) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary))

    def initial_state(self, batch: int) -> None:
        return None

    def forward(self, ids, state=None):
        return self.table[ids], None


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain()


def noticed(model: nn.Module, **values) -> SlowLevel:
    slow = SlowLevel(model, Consolidation(**values), vocabulary=5, seed=1)
    slow.notice(torch.tensor([[0, 1, 3]]), loss=1.0)
    return slow


class TestSurprise:
    def test_z_by_hand(self):
        notice = Surprise(threshold=100.0, recent=2, before=4)
        losses = [1.0, 2.0, 4.0, 3.0, 9.0, 7.0]
        assert [notice(loss) for loss in losses] == [False] * 6
        # differences of 1 2 4 3: 1 2 1, their mean 4/3
        spread = math.sqrt(math.pi) / 2 * 4 / 3
        assert notice.z() == pytest.approx((8.0 - 2.5) / (spread * math.sqrt(1 / 2 + 1 / 4)))

    def test_a_jump_is_noticed_once_and_noise_never(self):
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(400, generator=generator) * 0.3
        notice = Surprise()
        losses = [3.0 + float(n) for n in noise[:200]] + [5.0 + float(n) for n in noise[200:]]
        assert [i for i, loss in enumerate(losses) if notice(loss)] in [
            [step] for step in range(200, 208)
        ]

    def test_learning_is_no_surprise(self):
        notice = Surprise()
        assert not any(notice(8.0 * 0.99**step) for step in range(300))

    def test_goes_on(self):
        losses = [3.0, 3.1, 2.9, 3.2, 3.0] * 9 + [6.0] * 4
        whole, first = Surprise(), Surprise()
        expected = [whole(loss) for loss in losses]
        found = [first(loss) for loss in losses[:42]]
        second = Surprise()
        second.load_state(first.state())
        assert found + [second(loss) for loss in losses[42:]] == expected
        assert sum(expected) == 1

    @pytest.mark.parametrize(
        ("argument", "value"), [("threshold", 0.0), ("recent", 0), ("before", 2)]
    )
    def test_bad_argument(self, argument, value):
        with pytest.raises(ValueError, match=argument):
            Surprise(**{argument: value})


class TestShift:
    @staticmethod
    def text(tokens: int, batches: int, first: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batches, 40)
        return list(torch.randint(first, first + tokens, shape, generator=generator))

    def test_u_by_hand(self):
        notice = Shift(4)
        notice(torch.tensor([0, 0, 1]))
        notice(torch.tensor([[0], [3]]))
        first = math.log(4)  # nothing seen: all alike
        second = -(math.log((2 + 1) / (3 + 4)) + math.log((0 + 1) / (3 + 4))) / 2
        assert notice.state()["surprise"]["losses"] == pytest.approx([first, second])

    def test_other_tokens_are_noticed_at_once_and_the_same_never(self):
        notice = Shift(30)
        texts = [*self.text(10, 100, 0, 1), *self.text(10, 100, 15, 2)]
        assert [i for i, ids in enumerate(texts) if notice(ids)] == [100]

    def test_goes_on_and_forgets(self):
        texts = [*self.text(10, 60, 0, 1), *self.text(10, 5, 15, 2)]
        whole, first, second = Shift(30), Shift(30), Shift(30)
        expected = [whole(ids) for ids in texts]
        found = [first(ids) for ids in texts[:55]]
        second.load_state(first.state())
        assert found + [second(ids) for ids in texts[55:]] == expected
        assert any(expected)
        second.forget()
        assert not any(second(ids) for ids in self.text(10, 30, 0, 3))

    def test_a_slow_level_can_notice_what_the_loss_does_not_show(self, chain):
        """The loss is the same throughout; only who looks at the tokens sees a second text."""
        texts = [*self.text(2, 60, 0, 1), *self.text(2, 10, 3, 2)]
        found = {}
        for shift in (None, 4.5):
            slow = SlowLevel(chain, Consolidation(shift=shift, dreams=1, length=2), vocabulary=5)
            found[shift] = [i for i, ids in enumerate(texts) if slow.notice(ids, loss=1.0)]
            assert slow.surprises == len(found[shift])
        assert found == {None: [], 4.5: [60]}


class TestDream:
    def test_follows_the_models_probabilities(self, chain):
        first = torch.zeros(20_000, dtype=torch.long)
        written = dream(chain, first, length=2, generator=torch.Generator().manual_seed(0))
        p = chain.table.softmax(-1)
        second = torch.bincount(written[:, 1], minlength=5) / len(first)
        third = torch.bincount(written[:, 2], minlength=5) / len(first)
        torch.testing.assert_close(second, p[0].detach(), atol=0.012, rtol=0)
        torch.testing.assert_close(third, (p[0] @ p).detach(), atol=0.012, rtol=0)

    def test_temperature(self, chain):
        first = torch.zeros(20_000, dtype=torch.long)
        generator = torch.Generator().manual_seed(0)
        written = dream(chain, first, length=1, temperature=0.5, generator=generator)
        found = torch.bincount(written[:, 1], minlength=5) / len(first)
        expected = (chain.table[0] / 0.5).softmax(-1).detach()
        torch.testing.assert_close(found, expected, atol=0.012, rtol=0)

    def test_carried_state_is_the_whole_text(self):
        """The likeliest continuation, token by token, is that of reading everything again."""
        torch.manual_seed(0)
        model = build("hope", width=16, heads=2, layers=1)
        written = dream(
            model, torch.tensor([3, 90]), length=6, temperature=1e-4, generator=torch.Generator()
        )
        for t in range(1, 7):
            logits, _ = model(written[:, :t])
            assert logits[:, -1].argmax(-1).tolist() == written[:, t].tolist()

    @pytest.mark.parametrize(
        ("argument", "values"),
        [
            ("first", {"first": torch.zeros(0, dtype=torch.long)}),
            ("length", {"length": 0}),
            ("temperature", {"temperature": 0.0}),
        ],
    )
    def test_bad_argument(self, chain, argument, values):
        values = {"first": torch.tensor([1]), "length": 2, **values}
        with pytest.raises(ValueError, match=argument):
            dream(chain, values.pop("first"), generator=torch.Generator(), **values)

    def test_broken_model(self, chain):
        chain.table.data[:] = math.nan
        with pytest.raises(ValueError, match="not finite"):
            dream(chain, torch.tensor([1]), length=1, generator=torch.Generator())


class TestSlowLevel:
    def test_dreams_begin_with_what_was_seen(self, chain):
        slow = noticed(chain, dreams=64, length=3)
        slow.consolidate()
        assert set(slow.dreams[:, 0].tolist()) == {0, 1, 3}
        assert slow.written == 64 * 3

    def test_rehearsal_by_hand(self, chain):
        slow = noticed(chain, dreams=1, length=4, rehearsal=1.0, weight=0.5)
        slow.consolidate()
        student = Chain()
        held = slow.hold(student, new=4)
        ids = slow.dreams[0, :-1]
        p, q = chain.table[ids].softmax(-1), student.table[ids].softmax(-1)
        expected = 0.5 * (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(held.loss, expected)
        assert held.tokens == 4
        held.loss.backward()
        assert student.table.grad.abs().sum() > 0

    def test_rehearsal_weighs_as_many_things_as_were_learned(self, chain):
        slow = noticed(chain, dreams=1, length=4, surprise=6.0, rehearsal=1.0)
        student, losses = Chain(), [1.0, 1.1, 0.9, 1.0] * 11
        for jump in (0.0, 5.0, 10.0):
            for loss in losses:
                slow.notice(torch.tensor([[0]]), loss=loss + jump)
        assert slow.surprises == 2
        loss = slow.hold(student, new=4).loss
        slow._count["surprises"] = 1
        torch.testing.assert_close(loss, 2 * slow.hold(student, new=4).loss)

    def test_teacher_is_the_average_from_before_the_surprise(self, chain):
        slow = noticed(chain, dreams=2, length=2, average=0.0)
        known = chain.table.detach().clone()
        slow.follow(chain)
        slow.consolidate()
        chain.table.data.add_(1.0)
        slow.follow(chain)
        assert torch.equal(slow.teacher.table, known)
        assert torch.equal(slow.weights.table, known + 1.0)

    def test_average_by_hand(self, chain):
        slow = noticed(chain, average=0.9)
        start, expected = chain.table.detach().clone(), chain.table.detach().clone()
        for step in range(1, 101):
            chain.table.data.copy_(start * step)
            slow.follow(chain)
            kept = min(0.9, (1 + step) / (10 + step))
            expected = kept * expected + (1 - kept) * start * step
        torch.testing.assert_close(slow.weights.table.data, expected)

    def test_share_of_rehearsal(self, chain):
        slow = noticed(chain, dreams=3, length=8, rehearsal=0.3)
        slow.consolidate()
        held = [slow.hold(chain, new=10) for _ in range(80)]
        assert sum(h.tokens for h in held if h) == 0.3 * 10 * 80

    def test_period(self, chain):
        slow = SlowLevel(
            chain, Consolidation(period=6, surprise=None, dreams=1, length=1), vocabulary=5
        )
        ended = [slow.notice(torch.zeros(1, 2, dtype=torch.long), loss=1.0) for _ in range(9)]
        assert ended == [False] * 3 + [True] + [False] * 2 + [True] + [False] * 2
        assert slow.surprises == 0

    def test_goes_on_through_a_file(self, chain):
        def go(slow, model, losses):
            found = []
            for loss in losses:
                slow.notice(torch.tensor([[1, 2]]), loss=loss)
                held = slow.hold(model, new=8)
                found.append(0.0 if held is None else held.loss.item())
                model.table.data.mul_(0.9)
                slow.follow(model)
            return found

        losses = [1.0, 1.1, 0.9, 1.0] * 11 + [4.0, 4.1, 3.9, 4.0] * 3
        whole = noticed(chain, dreams=4, length=4)
        start = chain.table.detach().clone()
        expected = go(whole, chain, losses)
        chain.table.data.copy_(start)
        first = noticed(chain, dreams=4, length=4)
        found = go(first, chain, losses[:41])
        tensors: dict[str, torch.Tensor] = {}
        plain = pack(first.state(), tensors)
        second = SlowLevel(chain, Consolidation(dreams=4, length=4), vocabulary=5, seed=9)
        second.load_state(unpack(plain, {k: v.clone() for k, v in tensors.items()}))
        assert found + go(second, chain, losses[41:]) == expected
        assert statistics.fmean(expected) > 0

    def test_nothing_noticed(self, chain):
        slow = SlowLevel(chain, Consolidation(), vocabulary=5)
        assert slow.hold(chain, new=128) is None
        with pytest.raises(ValueError, match="nothing was noticed"):
            slow.consolidate()

    def test_other_vocabulary(self, chain):
        slow, other = noticed(chain), SlowLevel(chain, Consolidation(), vocabulary=7)
        with pytest.raises(ValueError, match="vocabulary of 7, got 5"):
            other.load_state(slow.state())

    @pytest.mark.parametrize(
        ("argument", "value"),
        [("surprise", 0.0), ("shift", 0.0), ("period", 0), ("average", 1.0), ("dreams", 0),
         ("length", 0), ("temperature", 0.0), ("rehearsal", -0.5), ("weight", 0.0)],
    )  # fmt: skip
    def test_bad_argument(self, argument, value):
        with pytest.raises(ValueError, match=argument):
            Consolidation(**{argument: value})


class TestInTheLevelTable:
    def test_stands_behind_the_weights_that_it_holds(self):
        from nestling.train import nested_system

        model = build("transformer", width=16, heads=2, layers=1)
        slow = SlowLevel(model, Consolidation(dreams=4, length=8), vocabulary=256)
        optimizer = torch.optim.AdamW(model.parameters())
        system = nested_system(model, optimizer, tokens_per_step=100, slow=slow)
        by_name = {c.name: c for c in system.components}
        size = sum(p.numel() for p in model.parameters())
        assert by_name["slow.average"].parameters == by_name["slow.teacher"].parameters == size
        assert by_name["slow.average"].level.period == 100
        assert by_name["slow.teacher"].level.period == 40 * 100  # 8 losses beside 32
        assert by_name["slow.teacher"].memory == "one number per weight, 4 x 8 dreamt tokens"
        numbers = system.numbers
        weights = [c.name for c in system.components if c.kind == "weights"]
        assert weights
        assert max(numbers[name] for name in weights) < numbers["slow.average"]
        moves = {(t.kind, t.source, t.target) for t in system.transfers}
        assert {("generation", "slow.teacher", name) for name in weights} <= moves
        assert ("initialisation", "slow.average", "slow.teacher") in moves

    @pytest.mark.parametrize(
        ("values", "period", "rule"),
        [
            ({"surprise": None}, None, "held"),
            ({"surprise": None, "period": 5_000}, 5_000, "replaced at every 5,000 tokens"),
            ({"period": 30}, 30, "replaced at surprise of 4.5 or every 30 tokens"),
            ({"surprise": None, "shift": 5.0}, 40, "replaced at shift of tokens of 5"),
        ],
    )
    def test_periods(self, chain, values, period, rule):
        slow = SlowLevel(chain, Consolidation(**values), vocabulary=5)
        teacher = slow.components(tokens_per_step=1)[1]
        assert (teacher.level.period, teacher.rule) == (period, rule)
