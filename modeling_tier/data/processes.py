# Licensed under the Apache License, Version 2.0.
"""What the worker processes of this package have in common."""

import multiprocessing
import os
import threading


def follow_parent() -> None:
    """Of a worker, when it starts: end with the parent, for whose work it would otherwise wait forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
