"""Ten architectures: the same model before the first write, another one after it."""

from __future__ import annotations

import pytest
import stack_models as models
import torch

from nestling.hf import stack_levels
from nestling.hf.mlp_finder import find_mlps
from nestling.levels import Level

LEVELS = [Level(period=4), Level(period=8)]
LAST = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h", "opt": "fc2", "phi": "fc2",
        "bert": "output.dense"}  # fmt: skip


@pytest.mark.parametrize("name", models.MODELS)
def test_the_mlps_are_found(name):
    made = models.model(name)
    for index, mlp in enumerate(find_mlps(made)):
        assert mlp.index == index
        assert (mlp.last.inputs, mlp.last.outputs) == (24, 16)
        assert mlp.last.path.endswith(LAST.get(name, "mlp.down_proj"))
        assert mlp.fused == (name == "phi3")
        assert len(mlp.first) == (2 if name in ("llama", "qwen2", "qwen3", "mistral", "gemma2")
                                  else 1)  # fmt: skip


@pytest.mark.parametrize("plan", ["layer_mod_levels", "split"])
@pytest.mark.parametrize("name", models.DECODERS)
def test_before_the_first_write_it_is_the_model(name, plan):
    made, ids = models.model(name), models.ids(2, 12)
    with torch.no_grad():
        expected = made(input_ids=ids).logits
        for step_size, matrices in ((0.1, "last"), (0.0, "every")):
            stacked = stack_levels(made, LEVELS, plan=plan, step_size=step_size, matrices=matrices)
            logits, _ = stacked(ids)
            assert torch.equal(logits, expected)  # to the last bit
        # With a step size of 0 also after any number of tokens, chunk by chunk.
        seen = stacked.observation(ids)
        chunks = models.by_chunks(made, ids, [4, 4, 4])
    nats = -chunks[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(seen.nats[:, 1:], nats, rtol=0, atol=1e-12)
    torch.testing.assert_close(chunks, expected, rtol=0, atol=1e-5)  # norms in float32


@pytest.mark.parametrize("name", models.DECODERS)
def test_writes_are_the_gradient_of_the_weights(name):
    """After one period dW is -eta/C times what autograd says of the matrix itself."""
    made, ids = models.model(name), models.ids(1, 5)
    stacked = stack_levels(made, [Level(period=4)], step_size=0.3, matrices="every")
    with torch.no_grad():
        _, state = stacked.observe(ids)
    out = made(input_ids=ids).logits
    torch.nn.functional.cross_entropy(out[0, :4], ids[0, 1:], reduction="sum").backward()
    checked = 0
    for slot in stacked.stack.slots:
        grad = made.get_submodule(slot.path).weight.grad
        grad = grad if name == "gpt2" else grad.mT
        written = state.blocks[slot.block].levels["0"][slot.name].weights["full"][0]
        torch.testing.assert_close(written, -0.3 / 4 * grad, rtol=1e-8, atol=1e-12)
        assert float(written.norm()) > 0
        checked += 1
    assert checked == 2 * (3 if len(find_mlps(made)[0].first) == 2 else 2)
    # What comes next is read with them: the same as with the weights changed.
    with torch.no_grad():
        logits, _ = stacked(models.ids(1, 6, seed=1), stacked.new_text(state))
        for slot in stacked.stack.slots:
            weight = made.get_submodule(slot.path).weight
            written = state.blocks[slot.block].levels["0"][slot.name].weights["full"][0]
            weight.add_(written if name == "gpt2" else written.mT)
        expected = made(input_ids=models.ids(1, 6, seed=1)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-8)


def test_an_encoder_learns_from_given_targets():
    made, ids = models.model("bert"), models.ids(2, 9)
    masked, targets = ids.clone(), torch.full_like(ids, -100)
    masked[:, ::3], targets[:, ::3] = 3, ids[:, ::3]
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    expected = made(input_ids=masked, attention_mask=mask).logits
    stacked = stack_levels(made, [Level(period=6)], step_size=0.3)
    with torch.no_grad():
        logits, _ = stacked(masked, attention_mask=mask)
        assert torch.equal(logits[0], expected[0])
        torch.testing.assert_close(logits[1, :6], expected[1, :6])
        first, state = stacked.observe(masked, attention_mask=mask, targets=targets)
        second, _ = stacked.observe(masked, state, attention_mask=mask, targets=targets)
        alone, _ = stacked.observe(masked[1:, :6], targets=targets[1:, :6])
    assert stacked.writes(state) == {"0": 1.0}
    assert second < first
    with torch.no_grad():
        seen = stacked.observation(masked[1:, :6], None, None, targets[1:, :6])
    assert float(seen.loss) == pytest.approx(float(alone), abs=1e-12)
    nats = torch.nn.functional.cross_entropy(
        expected.mT, targets.masked_fill(mask == 0, -100), reduction="sum"
    )
    assert float(first) == pytest.approx(float(nats.detach()) / 5, abs=1e-9)
    nats.backward()
    own = made.bert.encoder.layer[0].output.dense.weight.grad
    rows = [state.blocks[0].levels["0"]["last"].weights["full"][row] for row in range(2)]
    # The mean is over a row's own tokens: 9 and 6 of them.
    torch.testing.assert_close(9 * rows[0] + 6 * rows[1], -0.3 * own.mT, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="targets"):
        stacked.observe(masked)
