"""Nothing here reaches for the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

THEIRS = (
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test",
    "generate", "is_training_test", "torch_compile_test", "torch_export_test",
)  # fmt: skip


def pytest_configure(config):
    """Markers of transformers' own tests, which test_common.py runs."""
    for name in THEIRS:
        config.addinivalue_line("markers", f"{name}: of transformers")
