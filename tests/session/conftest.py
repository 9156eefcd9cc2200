"""Shape annotations are checked where sessions are used; ten thousand damaged ones do without."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="module")
def _annotations_checked_once(request):
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", request.module.__name__.endswith("_files"))
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
