"""A saved session comes from outside, by upload: whatever it holds, it is taken up or refused in one line."""

import copy
import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interactive_world import context, options, picture_folder  # noqa: F401  fixtures

from interactive.saved import open_session, save_session
from interactive.search_context import UserError
from interactive.session import Session

QUICK = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["../../etc/passwd", "AAAA", "append", "\ud800", 10**400, -1, 1e400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def open_or_refuse(text, context):  # noqa: F811
    try:
        opened = open_session(text, context)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert open_session(save_session(opened), context).turns  # what is taken up can be saved again


@QUICK
@given(content=st.text(max_size=200) | VALUES.map(json.dumps))
def test_any_upload_is_refused(context, content):  # noqa: F811
    open_or_refuse(content, context)


@QUICK
@given(data=st.data())
def test_any_change_to_a_session_is_taken_up_or_refused(context, options, data):  # noqa: F811
    session = Session(context, options)
    session.search("red dog")
    values = json.loads(save_session(session))
    for _ in range(data.draw(st.integers(1, 3))):
        values = copy.deepcopy(values)
        path = data.draw(st.sampled_from([path for path in places(values) if path]))
        inside = values
        for key in path[:-1]:
            inside = inside[key]
        if data.draw(st.booleans()):
            inside[path[-1]] = data.draw(VALUES)
        else:
            del inside[path[-1]]
    open_or_refuse(json.dumps(values), context)
