"""Tasks: what is predicted, and everything that depends on it."""

from stillhouse.errors import InputError, Problem
from stillhouse.tasks.base import Output, PairedTest, Task
from stillhouse.tasks.classification import Classification

__all__ = ["TASKS", "Output", "PairedTest", "Task", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (Classification(),)}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(Problem("task", f"{name!r} is unknown.", f"Choose one of: {', '.join(TASKS)}."))
    return TASKS[name]
