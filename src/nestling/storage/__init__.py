"""What is on the disk: checkpoints, writing that survives a kill, one writer per directory."""

from nestling.storage.checkpoint import Checkpoint, CheckpointError, latest, read, write
from nestling.storage.load import load_model

__all__ = ["Checkpoint", "CheckpointError", "latest", "load_model", "read", "write"]
