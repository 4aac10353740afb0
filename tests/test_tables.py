"""Tables in piped output: as wide as a page, without broken words, numbers or names."""

import pytest
from conftest import sslkit

from sslkit import console

PROSE = "Some words that explain an option in one long sentence, with a reference at its end."


def printed(capsys, *rows: tuple[str, ...]) -> list[str]:
    console.print_table([f"column {number}" for number in range(len(rows[0]))], rows)
    return capsys.readouterr().out.splitlines()


def test_long_cells_are_wrapped_to_a_page(capsys):
    lines = printed(capsys, ("size", "int ≥ 1", f"{PROSE} {PROSE}"))
    assert max(map(len, lines)) <= console.PAGE
    words = " ".join(lines).split()
    assert words[-len(f"{PROSE} {PROSE}".split()) :] == f"{PROSE} {PROSE}".split()


def test_a_row_of_many_numbers_stays_one_line(capsys):
    numbers = [f"{number}.25 [{number}.5, {number}.75]" for number in range(10, 20)]
    lines = printed(capsys, ("trained", *numbers))
    assert [line for line in lines if all(number in line for number in numbers)]


@pytest.mark.parametrize("word", ["/a" * 100, "汉" * 60], ids=["path", "wide characters"])
def test_no_word_is_broken_or_cut(capsys, word):
    assert word in "\n".join(printed(capsys, ("place", word, PROSE)))
    console.print_fields([("place", f"{word} {PROSE}")])
    out = capsys.readouterr().out
    assert word in out and out.startswith("  place  ") and "reference at its end." in out


@pytest.mark.parametrize("words", ["recipes", "plugins", "plugins show crops", "plugins show svm"])
def test_commands_print_tables_of_a_page(words):
    code, out, _ = sslkit(*words.split())
    assert code == 0 and max(map(len, out.splitlines())) <= 120
