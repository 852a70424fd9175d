"""What the terminal shows: estimates that are never absurd, and a table that Ctrl-C leaves on the screen."""

import io
import math

import pytest
from rich.console import Console

from robustkit import events
from robustkit.report import live, training, transfer_live
from robustkit.stats import Proportion
from robustkit.study.events import Started as StudyStarted
from robustkit.study.live import Display


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "less than 1 s"), (7.04, "7 s"), (83.7, "84 s"), (500, "8.3 min"), (42473, "12 h"), (7 * 3600, "7 h"),
     (300_000, "3.5 days"), (math.inf, "unknown"), (math.nan, "unknown"), (-1, "unknown")],
)  # fmt: skip
def test_an_estimate_has_two_digits_in_the_unit_that_one_thinks_in(seconds, said):
    assert live.about(seconds) == said


def test_a_cost_is_a_range_from_where_all_breaks_at_once_to_where_nothing_does():
    """It was `about 11:47:53` for 16 images."""
    said = live.cost(events.Predicted(125_008, 30_560, 42473.0, 21.0))
    assert (
        said == "between 21 s, if all breaks at once, and 12 h (if nothing breaks: 125,008 forwards, 30,560 backwards)"
    )
    assert live.cost(events.Predicted(40, 40, 0.1, 0.05)).startswith("less than 1 s (if nothing breaks: 40 forwards")
    assert live.cost(events.Auditing(60, 9, 9, 400.0)).startswith("at most 6.7 min (")
    assert live.cost(events.Predicted(9, 9, math.nan)).startswith("at most unknown (")


def test_before_the_speed_is_seen_nothing_is_said_of_what_is_left():
    progress = live.Progress()
    share = Proportion(1, 2)
    for fraction, seconds, said in ((0.011, 0.5, "…"), (0.001, 90.0, "…"), (0.5, 10.0, "≤ 10 s"), (1.0, 20.0, "done")):
        progress(events.Progress("pgd", fraction, 1, share, 10, seconds))
        assert progress.rows["pgd"][-1] == said


class Screen(io.StringIO):
    """What a terminal is sent, and what stands on it in the end."""

    def isatty(self):
        return True

    def lines(self):
        """The rows after all cursor movements up, carriage returns and erasures that rich sends."""
        rows, at = [""], 0
        text = self.getvalue()
        place = 0
        while place < len(text):
            if text[place] == "\x1b":
                stop = next(i for i in range(place + 2, len(text)) if text[i].isalpha())
                code, kind = text[place + 2 : stop], text[stop]
                if kind == "A":
                    at = max(0, at - int(code or 1))
                elif kind == "K":
                    rows[at] = ""
                place = stop + 1
                continue
            if text[place] == "\n":
                at += 1
                if at == len(rows):
                    rows.append("")
            elif text[place] != "\r":
                rows[at] += text[place]
            place += 1
        return rows


def screen():
    file = Screen()
    return file, Console(file=file, force_terminal=True, width=100, color_system=None, legacy_windows=False)


def table(progress):
    progress(events.Started("net · digits", 10, ("pgd",), False))
    progress(events.Progress("pgd", 0.5, 3, Proportion(7, 10), 100, 5.0))


@pytest.mark.parametrize("stopped", [True, False])
def test_ctrl_c_leaves_the_last_table_on_the_screen_and_an_end_does_not(stopped):
    file, console = screen()
    progress = live.Progress()
    progress.console = console
    try:
        with progress:
            table(progress)
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    standing = "\n".join(file.lines())
    assert ("70.00 % [39.68, 89.22]" in standing) == stopped


def test_so_do_a_transfer_run_a_study_and_a_training():
    shown = []
    for made, tell in (
        (transfer_live.Line(), [events.Started("t", 5, ("mi",), False), events.Making("a", "mi", 0.5, 100)]),
        (Display(), [StudyStarted("s", 4)]),
    ):
        file, made.console = screen()
        try:
            with made:
                for event in tell:
                    made(event)
                if isinstance(made, Display):
                    made.progress.start()
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            shown.append("\n".join(file.lines()))
    assert "a · mi: 100 passes" in shown[0]
    assert "cells" in shown[1]
    bar = training.TrainingProgress()
    with pytest.raises(KeyboardInterrupt), bar:
        raise KeyboardInterrupt
    assert bar.bar.live.transient is False
