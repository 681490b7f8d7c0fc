"""A deprecated name works for one more minor version and warns once."""

import warnings

import pytest
from packaging.version import Version

from sglang_fl import __version__, conformance, deprecation, errors, ops, platform, vendor
from sglang_fl.deprecation import DEPRECATED, deprecated

SENTENCE = "will be removed in sglang-fl-core 0.7: use double"


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deprecation, "DEPRECATED", [])


def twice(x: int) -> int:
    """Return it doubled."""
    return 2 * x


def test_a_deprecated_function_works_and_warns_once_at_its_caller():
    former = deprecated("double", "0.7")(twice)
    with pytest.warns(DeprecationWarning, match=rf"twice {SENTENCE}$") as caught:
        assert former(2) == 4
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert former(3) == 6


def test_a_deprecated_function_keeps_its_name_and_docstring():
    former = deprecated("double", "0.7")(twice)
    assert (former.__name__, former.__doc__) == ("twice", "Return it doubled.")


def test_what_is_deprecated_is_listed():
    deprecated("double", "0.7")(twice)
    assert [str(entry) for entry in deprecation.DEPRECATED] == [f"{__name__}.twice {SENTENCE}"]


def test_no_deprecated_name_outlives_its_version():
    assert {conformance, errors, ops, platform, vendor}  # imported, so that what they deprecate is listed
    assert [str(entry) for entry in DEPRECATED if Version(entry.removed_in) <= Version(__version__)] == []
