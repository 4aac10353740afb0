"""Runs a command of sslkit that ends when the process that started it ends.

`python -m sslkit.sweep.worker train …` is `sslkit train …` with a watch on its standard input, a
pipe that its parent never writes to. The system closes it when the parent ends, also by SIGKILL.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def start(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a command in a new session of processes; append its output to `log`.

    Closing its standard input stops it as SIGTERM does: training saves a checkpoint first.
    """
    command = [sys.executable, "-m", "sslkit.sweep.worker", *words]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def _watch() -> None:
    """Wait for the end of the pipe, then stop this process."""
    # os.read holds no lock of Python's, which a forked loader worker would inherit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line with a watch on the parent."""
    threading.Thread(target=_watch, daemon=True).start()
    runpy.run_module("sslkit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
