"""Training: the loop, its checkpoints, its learning rate."""

from nestling.models.sampling import sample
from nestling.storage.checkpoint import Checkpoint, CheckpointError, latest, read, write
from nestling.storage.load import load_model
from nestling.train.config import TrainConfig
from nestling.train.loop import Output, Result, train
from nestling.train.measure import evaluate
from nestling.train.metrics import read_metrics
from nestling.train.run import Run, Step
from nestling.train.schedule import warmup_cosine
from nestling.train.system import nested_system

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Output",
    "Result",
    "Run",
    "Step",
    "TrainConfig",
    "evaluate",
    "latest",
    "load_model",
    "nested_system",
    "read",
    "read_metrics",
    "sample",
    "train",
    "warmup_cosine",
    "write",
]
