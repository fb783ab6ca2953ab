"""What an answer looks like: tables, sentences, JSON."""

import json
from io import StringIO
from math import inf

import pytest
from rich.console import Console
from rich.table import Table

from planner.report.choice import chosen, chosen_text
from planner.report.document import as_json, plan_document
from planner.report.explain import as_text, explained
from planner.report.table import SHOWN_AT_MOST, answer_tables, nearest
from planner.report.texts import goodput, quantile_texts, seconds, share, usd
from planner.search.intervals import Interval
from planner.search.results import Quantiles
from planner.search.unloaded import Reach
from tests.planner.report.answers import answer, mixed, pools, question, ranked, setup


def printed(*tables: Table) -> str:
    console = Console(width=160, file=StringIO())
    for table in tables:
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


TEXTS = [
    (seconds(0.0123), "12.3 ms"),
    (seconds(1.234), "1.23 s"),
    (seconds(inf), "∞"),
    (quantile_texts(Quantiles(p50=0.1, p90=0.2, p99=0.3)), "100 / 200 / 300 ms"),
    (quantile_texts(Quantiles(p50=0.5, p90=2.0, p99=inf)), "0.5 / 2 / ∞ s"),
    (share(Interval(value=0.912, low=0.9, high=0.925)), "91.2 % (90.0 to 92.5)"),
    (goodput(Interval(value=1.5, low=1.25, high=inf)), "1.5 (1.25 to ∞)"),
    (usd(1234.5), "1,234.50"),
    (usd(0.0), "–"),
]


@pytest.mark.parametrize(("got", "want"), TEXTS)
def test_texts(got: str, want: str) -> None:
    assert got == want


def test_tables_name_every_figure() -> None:
    found = answer(ranked(pools(1, 2), 6.0), colocated=ranked(mixed(3), 3.0))
    text = printed(*answer_tables(found))
    for words in ("2 × decode 1x1", "2 (2 to 2.2)", "95.0 %", "100 / 200 / 300 ms", "1.50", "2 %"):
        assert words in text
    assert "1,500 / 2,100" in text
    assert "colocated" in text


def test_long_lists_end() -> None:
    many = [ranked(pools(1, n), 1.0 * n) for n in range(1, SHOWN_AT_MOST + 4)]
    assert "3 more in --json" in printed(*answer_tables(answer(*many)))


WINNERS = [
    # id                          pools' goodput, colocated's      colocated wins
    ("two pools attain more", 6.0, 3.0, False),
    ("colocated attains more", 3.0, 6.0, True),
]


@pytest.mark.parametrize(
    ("mine", "theirs", "is_colocated"), [c[1:] for c in WINNERS], ids=[c[0] for c in WINNERS]
)
def test_the_better_architecture_is_chosen_and_named(
    mine: float, theirs: float, is_colocated: bool
) -> None:
    made = setup()
    asked = question(made)
    found = answer(ranked(pools(1, 2), mine), colocated=ranked(mixed(3), theirs))
    winner = chosen(found, asked)
    assert winner is not None
    assert winner.candidate.is_colocated is is_colocated
    assert ("colocated wins" in chosen_text(winner, found, asked)) is is_colocated
    text = as_text(explained(made, asked, found))
    assert ("colocated wins with the same latency model" in text) is is_colocated


def test_an_explanation_names_assumptions_and_extrapolations() -> None:
    made = setup()
    text = as_text(explained(made, question(made), answer(ranked(pools(1, 2), 6.0))))
    for words in ("because", "nothing was measured", "measured to 192", "real arrivals", "3,200"):
        assert words in text


def test_nothing_is_chosen_where_nothing_attains() -> None:
    made = setup()
    found = answer(ranked(pools(1, 2), 6.0, share=0.5), colocated=ranked(mixed(3), 6.0, share=0.4))
    assert chosen(found, question(made)) is None
    assert not found.is_feasible
    text = "\n".join(nearest(found, 6.0))
    assert "at 6 requests/s; the most that one does is 5" in text
    assert "limits 1.7 times as large" in text


def test_limits_out_of_reach_come_with_the_nearest() -> None:
    late = Reach(class_name="all", limit="tpot_s", limit_s=0.001, reached_s=0.0042)
    text = "\n".join(nearest(answer(missed=(late,)), None))
    assert "TPOT within 1 ms" in text
    assert "the nearest is 4.2 ms" in text


def test_json_has_no_infinities() -> None:
    made = setup()
    found = answer(ranked(pools(1, 2), 6.0), best_rate_per_s=inf)
    text = as_json(plan_document(made, question(made), found, ()))
    assert json.loads(text)["best_rate_per_s"] is None
