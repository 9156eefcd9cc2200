"""What a stream of domains did to a model, from one matrix of losses.

    R[i, j] = loss on domain j after learning domain i        (bits per byte: lower is better)

All functions take ``R`` with one row per phase, ``(n, n)``, or with one more row in front for the
model before any training, ``(n + 1, n)``. The literature defines these numbers for accuracies,
where higher is better (Lopez-Paz and Ranzato 2017; Chaudhry et al. 2018); here they are stated
for losses, and the sign of each is said in its docstring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = Sequence[Sequence[float]] | NDArray[np.floating]


def _square(R: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """The rows after each phase, and the row before training if there is one."""
    losses = np.asarray(R, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise ValueError(f"R: expected a matrix phases x domains, got shape {losses.shape}")
    phases, domains = losses.shape
    if phases not in (domains, domains + 1):
        raise ValueError(
            f"R: expected {domains} rows for {domains} domains, or one more with the losses "
            f"before training, got {phases}"
        )
    if not np.isfinite(losses).all():
        i, j = np.argwhere(~np.isfinite(losses))[0]
        raise ValueError(f"R: expected finite losses, got {losses[i, j]} at row {i}, column {j}")
    return losses[-domains:], losses[0] if phases > domains else None


def final_average(R: Matrix) -> float:
    """Mean loss over all domains after the last phase: ``mean_j R[n, j]``. Lower is better.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> final_average([[2.0, 8.0], [3.0, 2.5]])
    2.75
    """
    losses, _ = _square(R)
    return float(losses[-1].mean())


def plasticity(R: Matrix) -> float:
    """Mean loss on the domain just learned: ``mean_j R[j, j]``. Lower means it learns better.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> plasticity([[2.0, 8.0], [3.0, 2.5]])
    2.25
    """
    losses, _ = _square(R)
    return float(losses.diagonal().mean())


def forgetting_by_domain(R: Matrix) -> list[float]:
    """How much each domain but the last lost since its best moment.

        F_j = R[n, j] - min over j <= i < n of R[i, j],    j = 1 ... n - 1

    Positive: it was known better once. Negative: later domains taught it more than its own.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> forgetting_by_domain([[2.0, 8.0, 8.0], [1.5, 2.5, 8.0], [3.0, 2.25, 2.0]])
    [1.5, -0.25]
    """
    losses, _ = _square(R)
    n = len(losses)
    return [float(losses[-1, j] - losses[j : n - 1, j].min()) for j in range(n - 1)]


def forgetting(R: Matrix) -> float:
    """Mean of :func:`forgetting_by_domain`; 0 for a single domain. Lower is better.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> forgetting([[2.0, 8.0, 8.0], [1.5, 2.5, 8.0], [3.0, 2.25, 2.0]])
    0.625
    """
    lost = forgetting_by_domain(R)
    return float(np.mean(lost)) if lost else 0.0


def backward_transfer(R: Matrix) -> float:
    """What later domains did to earlier ones, since each was learned. Higher is better.

        BWT = mean over j < n of R[j, j] - R[n, j]

    The sign is the literature's: negative means forgetting. It differs from minus
    :func:`forgetting` only where a domain improved after its own phase. 0 for a single domain.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> backward_transfer([[2.0, 8.0, 8.0], [1.5, 2.5, 8.0], [3.0, 2.25, 2.0]])
    -0.375
    """
    losses, _ = _square(R)
    change = losses.diagonal()[:-1] - losses[-1, :-1]
    return float(change.mean()) if change.size else 0.0


def forward_transfer(R: Matrix) -> float:
    """What earlier domains taught about later ones before their turn. Higher is better.

        FWT = mean over j > 1 of R[0, j] - R[j - 1, j]

    Needs the row before training. 0 for a single domain.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers, or lacks that row.

    >>> forward_transfer([[8.0, 8.0], [2.0, 6.5], [3.0, 2.5]])
    1.5
    """
    losses, before = _square(R)
    if before is None:
        raise ValueError(f"R: expected a row before training, got only {len(losses)} rows")
    gain = before[1:] - losses.diagonal(offset=1)
    return float(gain.mean()) if gain.size else 0.0


def average_incremental(R: Matrix) -> float:
    """Mean over phases of the mean loss on what was learned until then. Lower is better.

        1/n sum_i 1/i sum over j <= i of R[i, j]

    With error rates it is one minus iCaRL's average incremental accuracy.

    Raises:
        ValueError: if ``R`` is not such a matrix of finite numbers.

    >>> average_incremental([[2.0, 8.0], [3.0, 2.5]])
    2.375
    """
    losses, _ = _square(R)
    return float(np.mean([row[: i + 1].mean() for i, row in enumerate(losses)]))


def intransigence(R: Matrix, joint: Sequence[float]) -> float:
    """How much worse a domain is learned than by joint training. Lower is better.

        mean_j R[j, j] - joint[j]

    ``joint[j]`` is the loss on domain j of a model trained on domains 1 ... j together (Chaudhry
    et al. 2018), or, as a bound for all, on all of them: say which.

    Raises:
        ValueError: if ``R`` is not such a matrix, or ``joint`` has not one loss for each domain.

    >>> intransigence([[2.0, 8.0], [3.0, 2.5]], [1.5, 2.0])
    0.5
    """
    losses, _ = _square(R)
    reference = np.asarray(joint, dtype=np.float64)
    if reference.shape != (len(losses),) or not np.isfinite(reference).all():
        raise ValueError(
            f"joint: expected {len(losses)} finite losses, got shape {reference.shape}"
        )
    return float((losses.diagonal() - reference).mean())


def online_average(losses: Sequence[float], counts: Sequence[int]) -> float:
    """Area under the online curve: mean loss of each target before it was learned from.

        sum_n c_n l_n / sum_n c_n        (prequential: test, then train; Dawid 1984)

    Args:
        losses: ``l_n`` of each batch, measured before the step on it.
        counts: ``c_n``, its targets.

    Raises:
        ValueError: if there is none, the lengths differ, or a count is not positive.

    >>> online_average([4.0, 1.0], [1, 2])
    2.0
    """
    values, weights = np.asarray(losses, np.float64), np.asarray(counts, np.float64)
    if values.ndim != 1 or not values.size or values.shape != weights.shape:
        raise ValueError(
            f"losses: expected one for each count, got {values.shape} and {weights.shape}"
        )
    if not np.isfinite(values).all() or not (weights > 0).all():
        raise ValueError("losses: expected finite ones with positive counts")
    return float((values * weights).sum() / weights.sum())


def savings(first: Sequence[float], again: Sequence[float], *, criterion: float) -> float | None:
    """How much less it takes to learn something the second time (Ebbinghaus 1885).

        1 - n_again / n_first,     n = first point of the curve with loss <= criterion

    Both are loss curves at the same places, index 0 before the first step. 1: nothing was needed;
    0: as much as the first time; negative: more. ``None`` where a curve never gets there, or the
    first was there from the start: then there is nothing to compare.

    Raises:
        ValueError: if a curve is empty.

    >>> savings([8.0, 5.0, 3.0, 2.0, 2.0], [4.0, 2.0, 2.0], criterion=2.5)
    0.6666666666666667
    """
    if not len(first) or not len(again):
        raise ValueError("curves: expected at least one loss in each, got none")
    reached = [
        next((n for n, loss in enumerate(curve) if loss <= criterion), None)
        for curve in (first, again)
    ]
    if not reached[0] or reached[1] is None:
        return None
    return 1.0 - reached[1] / reached[0]


def errors(accuracies: Matrix) -> list[list[float]]:
    """``1 - A``: a matrix of accuracies as the losses that all metrics here take.

    Raises:
        ValueError: if a number is not between 0 and 1.

    >>> errors([[1.0, 0.25]])
    [[0.0, 0.75]]
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("accuracies: expected numbers between 0 and 1 (not per cent)")
    return (1 - values).tolist()
