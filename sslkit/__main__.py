"""`sslkit`, `python -m sslkit`, and what torchrun starts."""

import os
import sys

from sslkit import faults, installation


def main() -> None:
    """Run the command line. A broken installation ends in one sentence and exit code 2."""
    try:
        from sslkit.cli import app

        app(prog_name="sslkit")
    except (ImportError, OSError, RuntimeError) as error:
        message = installation.fault(error)
        if message is None or os.environ.get(faults.DEBUG):
            raise
        sys.stderr.write(f"{message}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
