from __future__ import annotations

import pytest

from automl.report.markup import Column, Html, difference, number, percent, score, table, tag

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (number(0.0001), "0.0001"),
        (number(1e-6), f"1e{MINUS}06"),
        (number(16, "px"), "16 px"),
        (number(True), "True"),
        (number(None), "\N{EN DASH}"),
        (number(0.4612, "fraction"), "46.12 %"),
        (score(0.935, "px"), "0.9350 px"),
        (score(1234.4), "1234"),
        (score(0.5, "fraction"), "50.00 %"),
        (difference(-0.0123, "fraction"), f"{MINUS}1.23 points"),
        (difference(0.0, "px"), "0 px"),
        (difference(0.25, "px"), "+0.25 px"),
        (percent(-0.337), f"{MINUS}33.7 %"),
        (percent(0.05), "+5.0 %"),
    ],
)
def test_numbers_are_written_with_sign_and_unit(shown: str, words: str) -> None:
    assert shown == words


def test_text_is_escaped_once() -> None:
    assert tag("p", "<a> & b") == "<p>&lt;a&gt; &amp; b</p>"
    assert tag("div", Html("<p>x</p>"), class_='"') == '<div class="&quot;"><p>x</p></div>'


def test_a_table_can_be_reached_and_read_without_a_mouse() -> None:
    shown = table("Sizes", [Column("File"), Column("Bytes", numeric=True)], [("a", "1")])
    assert 'role="region" tabindex="0" aria-label="Sizes"' in shown
    assert '<th scope="col" class="number">Bytes</th>' in shown
    assert '<th scope="row" class="words">a</th>' in shown
    assert '<td class="number">1</td>' in shown
