"""A deprecated name works for one more minor version and warns once."""

import subprocess
import sys
import warnings

import pytest
from packaging.version import Version

from sglang_fl import __version__, deprecation
from sglang_fl.deprecation import deprecated

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


#: Imports all public modules, so that what they deprecate is listed; SGLang before our platform, for which it
#: looks while it is half imported itself.
LIST = """
import sglang
from sglang_fl import conformance, errors, ops, platform, vendor
from sglang_fl.deprecation import DEPRECATED
print("REMOVED_IN", *(entry.removed_in for entry in DEPRECATED))
"""


def test_no_deprecated_name_outlives_its_version():
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    (versions,) = (line for line in done.stdout.splitlines() if line.startswith("REMOVED_IN"))
    assert [text for text in versions.split()[1:] if Version(text) <= Version(__version__)] == []
