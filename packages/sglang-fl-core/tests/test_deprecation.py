"""A deprecated name works for one more minor version and warns once."""

import warnings
from dataclasses import dataclass

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


def test_a_deprecated_class_stays_itself_and_warns_when_it_is_first_made():
    @deprecated("Pair", "0.7")
    @dataclass(frozen=True)
    class Former:
        left: int

    with pytest.warns(
        DeprecationWarning, match="Former will be removed in sglang-fl-core 0.7: use Pair$"
    ) as caught:
        made = Former(left=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Former(1) == made
    assert isinstance(made, Former)
    assert issubclass(type("Later", (Former,), {}), Former)


def test_what_is_deprecated_is_listed():
    deprecated("double", "0.7")(twice)
    assert [str(entry) for entry in deprecation.DEPRECATED] == [f"{__name__}.twice {SENTENCE}"]


def test_no_deprecated_name_outlives_its_version():
    assert {conformance, errors, ops, platform, vendor}  # imported, so that what they deprecate is listed
    assert [str(entry) for entry in DEPRECATED if Version(entry.removed_in) <= Version(__version__)] == []
