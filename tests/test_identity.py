"""Identity: the same for the same work, different for anything that affects the answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.results.identity import file_sha256, identity, plain, versions

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(max_size=3), values, max_size=4)


@settings(deadline=None)
@given(mappings)
def test_independent_of_order_and_stable(parts: dict[str, object]) -> None:
    turned = dict(reversed(list(parts.items())))
    assert identity(parts) == identity(turned)
    assert len(identity(parts)) == 64


@settings(deadline=None)
@given(mappings)
def test_plain_is_json(parts: dict[str, object]) -> None:
    assert json.loads(json.dumps(plain(parts), allow_nan=False)) == plain(parts)


def test_known_value_does_not_change() -> None:
    # a change here makes every stored result stale
    assert identity({"b": [1, 2.5, None], "a": "ü"}) == hashlib.sha256(b'{"a":"\\u00fc","b":[1,2.5,null]}').hexdigest()


def test_what_differs_and_what_does_not() -> None:
    distinct = [1, 1.0, True, "1", None, float("nan"), float("inf"), [1], {"1": 1}, 0.1, np.nextafter(0.1, 1)]
    assert len({identity({"x": value}) for value in distinct}) == len(distinct)
    assert identity({"x": (1, 2)}) == identity({"x": [1, 2]}) == identity({"x": np.array([1, 2])})
    assert identity({"x": {"a", "b", "c"}}) == identity({"x": {"c", "b", "a"}})
    assert identity({"x": Path("a/b")}) == identity({"x": "a/b"})


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "none")


def test_versions() -> None:
    found = versions()
    assert {"python", "landscape", "torch", "numpy", "scipy"} <= set(found)
    assert all(isinstance(v, str) and v for v in found.values())
