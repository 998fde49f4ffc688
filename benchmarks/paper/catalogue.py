"""The tasks by name, so that a child process is told a name."""

from benchmarks.paper.emotions import Emotions
from benchmarks.paper.entities import Entities
from benchmarks.paper.tasks import Task

_TASKS: dict[str, Task] = {task.name: task for task in (Entities(), Emotions())}


def task_named(name: str) -> Task:
    """The task."""
    return _TASKS[name]
