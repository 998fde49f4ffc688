"""For a process of a pool: ending when the one that started it is gone, however that ended."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch from a thread: a pool whose owner was killed would wait for work, and hold its memory, for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="end-with-parent", daemon=True).start()
