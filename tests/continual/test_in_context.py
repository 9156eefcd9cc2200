"""Learning by reading only: a window of examples, and a language model's inner state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from nestling.continual.protocol import IGNORED, Batch, Experience, Learner
from nestling.continual.run import run
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import ContextReader, InContext
from nestling.continual.stream import Stream
from nestling.memory import SoftmaxMemory
from nestling.models import build
from nestling.storage.packing import pack, unpack


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def resumed(state):
    """As it comes back from a file."""
    tensors: dict[str, torch.Tensor] = {}
    plain = pack(state, tensors)
    return unpack(plain, {name: t.clone() for name, t in tensors.items()})


def items(seed: int, count: int = 20, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = 2 * torch.randn(4, 5, generator=torch.Generator().manual_seed(99))
    return Batch(means[labels] + torch.randn(count, 5, generator=generator), labels)


class TestInContext:
    def learner(self, **values) -> InContext:
        return InContext(same, 5, 4, **{"window": 30, "temperature": 0.1, **values})

    def test_is_a_learner_that_learns(self):
        learner, test = self.learner(), items(2, 400)
        assert isinstance(learner, Learner)
        learner.observe(items(1, 30))
        wrong = (learner.predict(test.inputs).argmax(1) != test.targets).double().mean()
        assert wrong < 0.25  # chance is two thirds
        assert learner.cost.forward == 30
        assert learner.cost.stored_bytes == 30 * (5 * 4 + 8)

    def test_reads_as_the_softmax_memory_does(self):
        """The read of attention, on keys and queries of length one; tau in place of sqrt(K)."""
        learner, batch, test = self.learner(), items(1, 30), items(2)
        learner.observe(batch)
        k = F.normalize(batch.inputs.double(), dim=1)
        v = F.one_hot(batch.targets, 4).double()
        seen = torch.ones(30, dtype=torch.bool)
        for x, found in zip(test.inputs, learner.predict(test.inputs), strict=True):
            q = F.normalize(x.double(), dim=0) * math.sqrt(5) / 0.1
            expected = SoftmaxMemory().read(k, v, q, seen)
            torch.testing.assert_close(found.exp().double(), expected, atol=1e-6, rtol=1e-4)
        assert learner.predict(test.inputs)[:, 3].eq(-torch.inf).all()  # never read

    def test_small_shares_are_not_lost(self):
        learner = InContext(same, 2, 2, window=2, temperature=0.005)
        learner.observe(Batch(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])))
        # one over e^400 is no float32: its logarithm is
        torch.testing.assert_close(
            learner.predict(torch.tensor([[1.0, 0.0]])), torch.tensor([[0.0, -400.0]])
        )

    def test_what_leaves_the_window_is_forgotten(self):
        learner, fresh, last = self.learner(window=8), self.learner(window=8), items(3, 8)
        learner.observe(items(1))
        learner.observe(items(2, 5))
        for part in (last.rows(slice(0, 3)), last.rows(slice(3, 8))):
            learner.observe(part)
        fresh.observe(last)
        x = items(4).inputs
        assert torch.equal(learner.predict(x), fresh.predict(x))

    def test_asking_teaches_nothing(self):
        learner = self.learner()
        assert learner.observe(items(1)) == pytest.approx(
            (items(1).targets != 0).double().mean().item()  # all scores alike: the first class
        )
        x = items(2).inputs
        assert torch.equal(learner.predict(x), learner.predict(x))

    def test_goes_on_to_the_bit(self):
        whole, first, second = self.learner(), self.learner(), self.learner()
        expected = [whole.observe(items(seed, 7)) for seed in range(10)]
        found = [first.observe(items(seed, 7)) for seed in range(5)]
        second.load_state(resumed(first.state()))
        found += [second.observe(items(seed, 7)) for seed in range(5, 10)]
        assert found == expected
        assert torch.equal(second.predict(items(3).inputs), whole.predict(items(3).inputs))
        assert second.cost == whole.cost

    @pytest.mark.parametrize(
        ("argument", "values"),
        [
            ("width", {"width": 0}),
            ("classes", {"classes": 0}),
            ("window", {"window": 0}),
            ("temperature", {"temperature": 0.0}),
        ],
    )
    def test_bad_argument(self, argument, values):
        with pytest.raises(ValueError, match=argument):
            InContext(same, **{"width": 5, "classes": 4, "window": 3, **values})

    def test_bad_items(self):
        with pytest.raises(ValueError, match="classes below 4, got 7"):
            self.learner().observe(Batch(torch.zeros(1, 5), torch.tensor([7])))
        with pytest.raises(ValueError, match="features"):
            self.learner().observe(Batch(torch.zeros(1, 6), torch.tensor([0])))
        state = self.learner()
        state.observe(items(1))
        with pytest.raises(ValueError, match="at most 5, got 20"):
            self.learner(window=5).load_state(state.state())
        with pytest.raises(ValueError, match="expected width 6"):
            InContext(same, 6, 4, window=30).load_state(state.state())


def texts(seed: int, rows: int = 3, length: int = 11) -> Batch:
    ids = torch.randint(97, 105, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:])


MODELS = {
    "hope": {"preset": "hope"},
    "window": {"preset": "transformer", "window": 7},
    "global": {"preset": "transformer"},
    "levels": {"preset": "hope_attention", "periods": (4, 8), "regime": "in_context",
               "source": "backprop", "variant": "nested", "window": 16},
}  # fmt: skip


@pytest.fixture(params=MODELS, ids=str)
def reader(request):
    def make(**values) -> ContextReader:
        torch.manual_seed(0)
        model = build(**MODELS[request.param], width=16, heads=2, layers=1)
        return ContextReader(model, **values)

    return make


class TestContextReader:
    def test_is_a_learner_whose_weights_hold_still(self, reader):
        learner = reader()
        assert isinstance(learner, Learner)
        before = {name: w.clone() for name, w in learner.model.state_dict().items()}
        asked = learner.predict(texts(9).inputs)
        learner.observe(texts(1))
        assert not torch.equal(learner.predict(texts(9).inputs), asked)
        assert all(torch.equal(w, before[n]) for n, w in learner.model.state_dict().items())
        assert (learner.cost.forward, learner.cost.backward) == (33, 0)
        assert learner.cost.stored_bytes > 0

    def test_rows_are_one_text(self, reader):
        """In one batch, row by row, or by the model itself: the same losses and the same state."""
        whole, rows, batch = reader(), reader(), texts(1)
        loss = whole.observe(batch)
        parts = [rows.observe(batch.rows(slice(i, i + 1))) for i in range(3)]
        assert loss == pytest.approx(sum(parts) / 3, rel=1e-5)
        x = texts(2).inputs
        torch.testing.assert_close(whole.predict(x), rows.predict(x), rtol=1e-4, atol=1e-4)
        model = whole.model
        if not model.config.learns_from_loss:
            logits, state = model(batch.inputs.reshape(1, -1))
            nats = F.cross_entropy(logits[0], batch.targets.flatten())
            assert loss == pytest.approx(nats.item(), rel=1e-5)
            for row, found in zip(x, whole.predict(x), strict=True):
                torch.testing.assert_close(found, model(row[None], state)[0][0])

    def test_asking_teaches_nothing(self, reader):
        learner = reader()
        learner.observe(texts(1))
        many = texts(2, rows=40).inputs  # more than one copy of the state at a time
        once = learner.predict(many)
        assert torch.equal(learner.predict(many), once)
        torch.testing.assert_close(learner.predict(many[37:38]), once[37:38])

    def test_goes_on_to_the_bit(self, reader):
        whole, first, second = reader(), reader(), reader()
        expected = [whole.observe(texts(seed)) for seed in range(6)]
        found = [first.observe(texts(seed)) for seed in range(3)]
        second.load_state(resumed(first.state()))
        found += [second.observe(texts(seed)) for seed in range(3, 6)]
        assert found == expected
        assert torch.equal(second.predict(texts(9).inputs), whole.predict(texts(9).inputs))
        assert second.cost == whole.cost

    def test_a_deep_copy_goes_its_own_way(self, reader):
        learner = reader()
        learner.observe(texts(1))
        other, asked = copy.deepcopy(learner), learner.predict(texts(9).inputs)
        other.observe(texts(2))
        assert torch.equal(learner.predict(texts(9).inputs), asked)
        assert not torch.equal(other.predict(texts(9).inputs), asked)

    def test_padding_counts_nowhere(self, reader):
        bare, padded, batch = reader(), reader(), texts(1)
        loss = bare.observe(batch)
        behind = Batch(
            F.pad(batch.inputs, (0, 4), value=97), F.pad(batch.targets, (0, 4), value=IGNORED)
        )
        assert padded.observe(behind) == loss
        x = texts(2).inputs
        assert torch.equal(bare.predict(x), padded.predict(x))
        nothing = Batch(batch.inputs, torch.full_like(batch.targets, IGNORED))
        assert padded.observe(nothing) == 0.0
        assert torch.equal(bare.predict(x), padded.predict(x))

    def test_without_writes_while_asked(self):
        torch.manual_seed(0)
        model = build("hope", width=16, heads=2, layers=1)
        on, off = ContextReader(model), ContextReader(model, writes="off")
        x = texts(2).inputs
        for learner in (on, off):
            learner.observe(texts(1))
        assert not torch.allclose(on.predict(x), off.predict(x), atol=1e-5)

    def test_over_a_stream(self):
        """A run of it: what was read last is known best, and a text of it is in context."""
        torch.manual_seed(0)
        model = build("transformer", width=16, heads=2, layers=1, window=32)
        parts = [Experience(str(seed), texts(seed, rows=6)) for seed in range(2)]
        record = run(
            ContextReader(model), Stream(parts, batch=2, boundaries=False), parts,
            score=bits_per_target,
        )  # fmt: skip
        assert record.finished
        assert len(record.R) == 3
        assert record.R[1] != record.R[0]

    def test_errors(self):
        model = build("hope", width=16, heads=2, layers=1)
        other = ContextReader(build("transformer", width=16, heads=2, layers=1)).state()
        with pytest.raises(ValueError, match="another model"):
            ContextReader(model).load_state(other)
