"""Tasks: what a model's outputs are, when a candidate has reached its aim, and which facts are stored of it."""

from robustkit.tasks.task import Task

__all__ = ["Task"]
