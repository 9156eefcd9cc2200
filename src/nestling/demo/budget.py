"""Every number of the demo in one place: sizes, steps, what is measured and how often."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.levels import Consolidation


@dataclass(frozen=True, kw_only=True)
class DemoBudget:
    """What the demo spends. Fixed in steps and not in seconds, so that a run can be repeated.

    Attributes:
        width, heads, layers: of both models.
        periods: update periods of Hope's levels, in tokens.
        batch: sequences of one step.
        length: bytes of one sequence, in training and in every measurement of the matrix.
        steps: optimizer steps for each domain.
        lr: AdamW's learning rate, for both models.
        warmup: steps of its linear rise at the start of the stream; constant afterwards.
        weight_decay: AdamW's, for matrices.
        clip: largest norm of a gradient.
        held_out: bytes at the end of each text that are never trained on.
        measured: of these, bytes measured after each phase, spread over the whole tail.
        probed: of these, bytes measured within a phase, for the curves.
        probes: measurements within each phase.
        reading: bytes of the long passages read at the end with the state carried along.
        passages: number of such passages per domain.
        consolidation: of Hope's slow level.
        threads: of torch. One: these tensors are too small for more, and sums are then added in
            the same order on every machine.
    """

    width: int = 96
    heads: int = 4
    layers: int = 2
    periods: tuple[int, ...] = (1, 8_192, 65_536)
    batch: int = 4
    length: int = 256
    steps: int = 80
    lr: float = 1e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    held_out: int = 32_768
    measured: int = 6_144
    probed: int = 1_024
    probes: int = 3
    reading: int = 1_024
    passages: int = 4
    consolidation: Consolidation = Consolidation(shift=4.5, dreams=128, length=256)
    threads: int = 1

    def __post_init__(self) -> None:
        for name in (
            "batch", "length", "steps", "held_out", "measured", "probed", "probes", "passages",
            "threads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.length < self.probed <= self.measured <= self.held_out:
            raise ValueError(
                "expected length < probed <= measured <= held_out, got "
                f"{self.length}, {self.probed}, {self.measured}, {self.held_out}"
            )
        if self.reading % self.length:
            raise ValueError(
                f"reading: expected a multiple of length {self.length}, got {self.reading}"
            )

    @property
    def tokens_per_domain(self) -> int:
        """Bytes trained on in each phase, repeats counted."""
        return self.steps * self.batch * self.length

    @property
    def least_train_bytes(self) -> int:
        """The shortest text that gives a sequence to train on."""
        return self.length + 1


DEFAULT = DemoBudget()
"""At most five minutes on two cores."""

SHORT = DemoBudget(
    width=32, heads=2, layers=1, length=128, steps=12, warmup=4, measured=1_024, probed=512,
    probes=2, periods=(1, 1_024, 4_096), reading=256, passages=2,
)  # fmt: skip
"""The same run in small, under a minute: shows that everything works, and nothing else."""

SEED_SPREAD = {"Final average": 0.43, "Forgetting": 0.44, "Just learned": 0.09}
"""Standard deviation over seeds of the closing numbers of the default run, in bits per byte: the
root of the mean of both models' squares, three seeds each (the Transformer++ moves most)."""
