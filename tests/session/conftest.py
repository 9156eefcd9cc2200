"""Shape annotations are checked where sessions are used, once; what repeats that does without.

Ten thousand damaged files, and every kind of layer at every position, take five times as long with
the checks on.
"""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="module")
def _annotations_checked_once(request):
    before = jaxtyping.config.jaxtyping_disable
    repeats = request.module.__name__.endswith(("_files", "_outline"))
    jaxtyping.config.update("jaxtyping_disable", repeats)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
