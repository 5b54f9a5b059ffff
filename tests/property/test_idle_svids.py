"""Whatever is taken and left, in whatever order: the bound holds, and nobody loses a fair share to others."""

from hypothesis import given
from hypothesis import strategies as st

from node_agent.domain.idle_svids import IdleSvids
from tests.builders import selectors

HOLDERS = [None, *(selectors(f"unix:uid:{number}") for number in range(4))]
STEPS = st.lists(st.tuples(st.sampled_from(["leave", "leave", "take", "trim"]), st.integers(0, 30), st.integers(0, 4)))


@given(most=st.integers(0, 12), steps=STEPS)
def test_the_bound_holds_and_is_shared(most, steps):
    """Against a plain model: a list for each holder, oldest first."""
    idle = IdleSvids(most)
    model = {holder: [] for holder in HOLDERS}
    for action, number, who in steps:
        entry_id, holder = f"e{number}", HOLDERS[who]
        if action == "leave":
            idle.leave(entry_id, holder)
            if not any(entry_id in left for left in model.values()):
                model[holder].append(entry_id)
        elif action == "take":
            idle.take(entry_id)
            for left in model.values():
                if entry_id in left:
                    left.remove(entry_id)
        else:
            before = {holder: list(left) for holder, left in model.items()}
            for victim in idle.overflow():
                largest = max(len(left) for left in model.values())
                (owner,) = [holder for holder, left in model.items() if victim in left]
                assert len(model[owner]) == largest, "who has most gives up"
                assert model[owner].pop(0) == victim, "what it left longest ago"
            assert len(idle) == sum(map(len, model.values())) <= most
            sharing = [left for left in before.values() if left]
            for holder, left in before.items():
                if sharing and len(left) <= most // len(sharing):
                    assert model[holder] == left, "a fair share is never lost to others"
        for left in model.values():
            assert all(one in idle for one in left)
        assert len(idle) == sum(map(len, model.values()))
