"""Where the package's shape annotations are checked here: on the whole product, once.

``test_oracle.py`` and ``test_softmax.py`` run every memory, rule and engine with the checks on. The
laws repeat the same calls many times over and would take twice as long, and wrong arguments must
meet the errors that a user meets, who has no such checks.
"""

from __future__ import annotations

import jaxtyping
import pytest

CHECKED = ("test_oracle", "test_softmax")


@pytest.fixture(autouse=True, scope="module")
def _annotations_checked_once(request):
    if request.module.__name__.endswith(CHECKED):
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
