"""Without the extra the core works, and nestling.hf says what to install."""

import subprocess
import sys

SCRIPT = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "tokenizers", "accelerate", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else find(name, *rest)
sys.meta_path.insert(0, Blocked())
import nestling.cli, nestling.demo, nestling.models, nestling.session, nestling.train
print("core")
try:
    import nestling.hf
except ImportError as error:
    print(error)
"""


def test_without_transformers():
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    first, second = told.stdout.splitlines()
    assert first == "core"
    assert second == 'nestling.hf needs transformers >= 5.17: pip install "nestling[hf]"'
