"""Rungs: who goes on depends only on the values seen at the same rung."""

import math

from hypothesis import given
from hypothesis import strategies as st

from automl.algorithms.rungs import Decision, Rungs, default_rungs, losses_at, may_complete
from automl.store import EpochRecord, TrialRecord

losses = st.floats(0.01, 100)


def test_the_default_rungs_are_a_ninth_and_a_third():
    assert default_rungs(27) == (3, 9)
    assert default_rungs(12) == (2, 4)
    assert default_rungs(9) == (2, 3)
    assert default_rungs(3) == (2,)
    assert default_rungs(2) == default_rungs(1) == ()


def test_a_trial_survives_within_the_best_third():
    rungs = Rungs(12, (2, 6), factor=3)
    seen = [5.0, 1.0, 2.0, 3.0, 4.0]
    assert rungs.decide(5, 2, {2: 1.5}, {2: seen}) == Decision("continue", 2)
    assert rungs.decide(5, 2, {2: 2.5}, {2: seen}) == Decision("stop", 2)
    assert rungs.decide(5, 2, {2: 2.5}, {6: seen}) == Decision("continue", 2)  # first at rung 2
    assert rungs.decide(5, 2, {2: 2.0}, {2: [2.0]}) == Decision("stop", 2)  # of equals the earlier
    assert rungs.decide(5, 1, {1: 9.0}, {2: seen}) == Decision("continue", None)
    assert rungs.decide(5, 12, {2: 9.0}, {2: seen}) == Decision("complete", 12)


def test_a_first_arrival_is_compared_again_until_enough_have_arrived():
    rungs = Rungs(12, (2, 6), factor=3)
    assert rungs.decide(5, 3, {2: 9.0}, {2: []}) == Decision("continue", None)
    assert rungs.decide(5, 3, {2: 9.0}, {2: [1.0]}) == Decision("stop", 2)
    assert rungs.decide(5, 3, {2: 9.0}, {2: [1.0, 2.0]}) == Decision("stop", 2)
    assert rungs.decide(5, 3, {2: 9.0}, {2: [1.0, 2.0, 3.0]}) == Decision("continue", None)


def test_a_trial_that_is_needed_for_enough_complete_ones_is_not_stopped():
    rungs = Rungs(12, (2, 6), min_complete=3)
    assert rungs.decide(5, 2, {2: 9.0}, {2: [1.0]}, others=2).action == "continue"
    assert rungs.decide(5, 2, {2: 9.0}, {2: [1.0]}, others=3).action == "stop"
    assert rungs.decide(5, 2, {2: 9.0}, {2: [1.0]}).action == "stop"  # a study without end


@given(
    values=st.lists(st.tuples(losses, losses), min_size=3, max_size=9),
    least=st.integers(1, 4),
)
def test_enough_trials_become_complete(values, least):
    """One after another, whatever their values."""
    rungs = Rungs(12, (2, 6), min_complete=least)
    trials = [TrialRecord(number, {}, 0, 0.0, state="waiting") for number in range(len(values))]
    for trial, at in zip(trials, values, strict=True):
        trial.state = "running"
        for epoch, value in zip((2, 6), at, strict=True):
            seen = losses_at(trials, (2, 6), "m", 1, trial.id)
            others = may_complete(trials, trial.id) + len(trials) - trial.id - 1
            decision = rungs.decide(trial.id, epoch, {epoch: value}, seen, others)
            record = EpochRecord(epoch, {"m": value}, 1.0, None, decision.action, epoch)
            trial.epochs.append(record)
            if decision.action == "stop":
                trial.state = "stopped"
                break
        else:
            trial.state = "complete"
    complete = sum(trial.state == "complete" for trial in trials)
    assert complete >= min(least, len(trials))


@given(seen=st.lists(losses, max_size=8), loss=losses | st.just(math.nan))
def test_the_baseline_is_never_stopped(seen, loss):
    for epoch in range(1, 12):
        assert (
            Rungs(12, (2, 6)).decide(0, epoch, {2: loss, 6: loss}, {2: seen, 6: seen}).action
            == "continue"
        )


def test_a_value_that_is_no_number_does_not_survive():
    assert Rungs(12, (2,), min_complete=9).decide(1, 2, {2: math.nan}, {}, 0).action == "stop"


@given(
    values=st.dictionaries(st.integers(1, 6), st.tuples(losses, losses), min_size=2),
    loss=losses,
    data=st.data(),
)
def test_a_decision_does_not_depend_on_how_other_rungs_were_reached(values, loss, data):
    """Any subset of the others may have reached the higher rung, in any order."""
    rungs = Rungs(12, (2, 6))

    def decide(reached: set[int], order: list[int]) -> Decision:
        trials = [
            TrialRecord(
                id=number,
                params={},
                seed=0,
                started=0.0,
                epochs=[
                    EpochRecord(epoch, {"m": value}, 1.0, None, "continue", epoch)
                    for epoch, value in zip((2, 6), values[number], strict=True)
                    if epoch == 2 or number in reached
                ],
            )
            for number in order
        ]
        return rungs.decide(9, 2, {2: loss}, losses_at(trials, rungs.rungs, "m", 1, 9))

    numbers = sorted(values)
    reached = data.draw(st.sets(st.sampled_from(numbers)))
    order = data.draw(st.permutations(numbers))
    assert decide(reached, order) == decide(set(), numbers)


@given(trials=st.integers(1, 60), factor=st.integers(2, 4), least=st.integers(1, 4))
def test_expected_epochs_lie_between_the_first_rung_and_full_runs(trials, factor, least):
    expected = Rungs(12, (2, 6), factor, least).expected_epochs(trials)
    assert 2 * trials <= expected <= 12 * trials
    assert Rungs(12).expected_epochs(trials) == 12 * trials


def test_hyperband_compares_inside_several_brackets():
    rungs = Rungs(27, (3, 9), factor=3, pruner="hyperband")
    brackets = [rungs.bracket(trial) for trial in range(17)]
    assert [brackets.count(bracket) for bracket in range(3)] == [9, 5, 3]
    assert set(brackets[:10]) == {0, 1, 2}
    assert {rungs.of(trial).rungs for trial in range(10)} == {(3, 9), (9,), ()}
    late = rungs.of(brackets.index(1))
    assert late.decide(5, 3, {}, {}) == Decision("continue", None)
    assert late.decide(5, 9, {9: 2.0}, {9: [1.0]}).action == "stop"


def test_hyperband_es_also_ends_hopeless_trials_between_rungs():
    rungs = Rungs(27, (3, 9), pruner="hyperband_es")
    seen = {3: [1.0, 2.0, 3.0]}
    assert [rungs.forecasts(epoch) for epoch in (2, 3, 4)] == [False, True, True]
    assert rungs.decide(5, 4, {3: 0.5}, seen, chance=0.01) == Decision("stop", 3)
    assert rungs.decide(5, 4, {3: 0.5}, seen, chance=0.1).action == "continue"
    assert not Rungs(27, (), pruner="hyperband_es").forecasts(20)


def test_the_median_rule_compares_after_every_epoch_from_the_first_rung_on():
    rungs = Rungs(27, (3, 9), factor=3, pruner="median")
    assert [rungs.compared_at(epoch) for epoch in (2, 3, 5)] == [None, 3, 5]
    seen = {5: [1.0, 2.0, 3.0]}
    assert rungs.decide(5, 5, {5: 2.0}, seen) == Decision("continue", None)
    assert rungs.decide(5, 5, {5: 2.1}, seen) == Decision("stop", 5)
    assert rungs.decide(5, 5, {5: 9.0}, {5: [1.0, 2.0]}).action == "continue"


def test_a_forecast_must_have_a_fair_chance_at_a_rung():
    rungs = Rungs(27, (3, 9), factor=3, min_complete=2, pruner="forecast")
    seen = {3: [1.0, 2.0]}
    assert rungs.decide(5, 3, {3: 9.0}, seen, chance=0.34) == Decision("continue", 3)
    assert rungs.decide(5, 3, {3: 0.1}, seen, chance=0.33) == Decision("stop", 3)
    assert rungs.decide(5, 4, {3: 0.1}, seen, chance=0.0).action == "continue"  # no rung
    assert rungs.decide(5, 3, {3: 9.0}, seen, others=1, chance=0.0).action == "continue"
    assert rungs.decide(0, 3, {3: 9.0}, seen, chance=0.0).action == "continue"
    assert rungs.decide(5, 3, {3: 9.0}, seen) == Decision("stop", 3)  # by rank: none is complete


@given(trials=st.integers(1, 60), pruner=st.sampled_from(["hyperband", "median", "forecast"]))
def test_expected_epochs_of_every_pruner_lie_below_full_runs(trials, pruner):
    expected = Rungs(27, (3, 9), pruner=pruner).expected_epochs(trials)
    assert 3 * trials <= expected <= 27 * trials
