"""Tasks: what a model's outputs are, when a candidate has reached its aim, and by how much."""

from robustkit.tasks.classification import CLASSIFICATION
from robustkit.tasks.task import Task

__all__ = ["CLASSIFICATION", "Task"]
