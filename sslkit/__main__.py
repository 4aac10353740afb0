"""`python -m sslkit`, and what torchrun starts."""

from sslkit.cli import app

app(prog_name="sslkit")
