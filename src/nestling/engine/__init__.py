"""Engines: run a memory over tokens under a learning rule.

``recurrent.py`` is the definition, a plain token loop; ``chunked.py`` is the exact closed form of
a chunk. Both return the same numbers; :func:`scan` chooses between them.
"""

from nestling.engine.layout import Layout, plan
from nestling.engine.scan import run, scan

__all__ = ["Layout", "plan", "run", "scan"]
