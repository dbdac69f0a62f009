import itertools

import pytest

from launcher.sweep.trial_state import AT_REST, IllegalTransitionError, State, TrialState

# What each transition leads to, and from where: written down once more, as the table of a textbook.
TABLE = {
    "wait": ("new interrupted stopped pruned failed", "waiting"),
    "queue": ("new interrupted stopped pruned failed running", "queued"),
    "start": ("new interrupted stopped pruned failed queued", "running"),
    "fail": ("new interrupted stopped pruned failed waiting queued running", "failed"),
}
ENDS_FROM = "waiting queued running"
WAYS = {  # from what its files tell to each other state
    "waiting": ["wait"],
    "queued": ["queue"],
    "running": ["start"],
}


def standing(name):
    """A trial that has come to a state by the transitions alone."""
    state = TrialState(State(name) if State(name) in AT_REST else State.NEW)
    for transition in WAYS.get(name, []):
        getattr(state, transition)()
    assert state.current == name
    return state


@pytest.mark.parametrize(("transition", "name"), [*itertools.product(TABLE, map(str, State))])
def test_a_transition_leads_where_it_should_or_raises(transition, name):
    sources, target = TABLE[transition]
    state = standing(name)
    arguments = ["a wheel came off"] if transition == "fail" else []
    if name in sources.split():
        getattr(state, transition)(*arguments)
        assert state.current == target and state.reason == "".join(arguments)
    else:
        with pytest.raises(IllegalTransitionError, match=f"is {name} cannot {transition}"):
            getattr(state, transition)(*arguments)
        assert state.current == name


@pytest.mark.parametrize(("name", "found"), [*itertools.product(map(str, State), State)])
def test_a_trial_ends_as_its_files_tell(name, found):
    state = standing(name)
    if name in ENDS_FROM.split() and found in AT_REST:
        state.end(found)
        assert state.current == found
    else:
        with pytest.raises(IllegalTransitionError):
            state.end(found)
        assert state.current == name


@pytest.mark.parametrize("name", [*map(str, State)])
def test_what_is_at_rest_may_be_looked_at_again(name):
    state = standing(name)
    if State(name) in AT_REST:
        state.look(State.FINISHED)
        assert state.current == "finished"
    else:
        with pytest.raises(IllegalTransitionError, match=f"is {name} cannot be found"):
            state.look(State.FINISHED)


def test_a_finished_trial_stays_finished():
    state = standing("finished")
    for call in (state.wait, state.queue, state.start, lambda: state.end(State.NEW), lambda: state.fail("why")):
        with pytest.raises(IllegalTransitionError):
            call()
    assert state.current == "finished"


def test_a_reason_is_that_of_the_last_failure_alone():
    state = standing("running")
    state.fail("a wheel came off")
    state.start()
    assert state.reason == ""


def test_nothing_is_found_that_files_do_not_tell():
    for name in ("waiting", "queued", "running"):
        with pytest.raises(IllegalTransitionError, match=name):
            TrialState(State(name))
