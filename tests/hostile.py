"""Guards of the tests that open what a stranger may send: nothing runs code, hangs or writes
elsewhere.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY
from typer.testing import CliRunner

from sslkit.cli import app
from sslkit.errors import printable

needs_alarms = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms and pipes")


@pytest.fixture(autouse=True)
def never_for_long() -> Iterator[None]:
    """A test that waits for ever is ended with an error."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, name="home")
def in_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, home/; whatever is written beside it, or to a file planted there, fails
    the test.
    """
    inside, outside = tmp_path / "home", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    monkeypatch.chdir(inside)
    yield inside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "outside"]
    assert [path.name for path in outside.rglob("*")] == ["secret"] and (
        outside / "secret"
    ).read_text() == "secret"
    assert not list(tmp_path.rglob("pwned*"))


def sslkit(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process, which may print no traceback and
    no control characters.
    """
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert all(line == printable(line) for line in result.output.split("\n")), result.output
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    """What is said by a command that ends with exit code 2."""
    code, _, errors = sslkit(*arguments)
    assert code == 2 and errors.strip()
    return errors


VALID = TINY.format(root="images")

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


class Trap:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, ("pwned", "w")
