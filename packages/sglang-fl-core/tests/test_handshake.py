"""The version of the contract that a vendor package was written for, against those that core keeps."""

from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from sglang_fl.errors import VendorError
from sglang_fl.registry.handshake import SUPPORTED, check_core_api
from sglang_fl.vendor import CORE_API


@pytest.fixture
def package(site: Path) -> Distribution:
    info = site / "sglang_fl_toy-0.4.2.dist-info"
    info.mkdir()
    needs = "Requires-Dist: torch\nRequires-Dist: sglang_fl.core>=0.7,<0.9; python_version > '3'\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang-fl-toy\nVersion: 0.4.2\n{needs}")
    return distribution("sglang-fl-toy")


@pytest.mark.parametrize("core_api", [2, 3, 4])
def test_a_package_for_any_version_of_the_range_is_taken(core_api: int):
    check_core_api(core_api, None, range(2, 5))


def test_this_core_takes_packages_for_its_own_version():
    assert SUPPORTED[-1] == CORE_API
    check_core_api(CORE_API, None)


def test_of_a_package_that_is_too_old_the_message_says_that_it_must_be_upgraded(package: Distribution):
    expected = (
        r"written for core API 1, sglang-fl-core \S+ has 2 to 4: upgrade sglang-fl-toy to a version later "
        r"than 0\.4\.2, one for core API 2 to 4; this one asks for sglang-fl-core>=0\.7,<0\.9$"
    )
    with pytest.raises(VendorError, match=expected):
        check_core_api(1, package, range(2, 5))


def test_of_a_package_that_is_too_new_the_message_says_which_core_it_wants(package: Distribution):
    expected = (
        r"written for core API 5, sglang-fl-core \S+ has 2 to 4: upgrade sglang-fl-core to a version with "
        r"core API 5: sglang-fl-toy asks for sglang-fl-core>=0\.7,<0\.9$"
    )
    with pytest.raises(VendorError, match=expected):
        check_core_api(5, package, range(2, 5))


@pytest.mark.parametrize("core_api", ["1.0", None, True, 1.0], ids=repr)
def test_what_is_no_number_is_refused(core_api: object):
    with pytest.raises(VendorError, match=rf"core_api={core_api!r} must be the number of a core API"):
        check_core_api(core_api, None)
