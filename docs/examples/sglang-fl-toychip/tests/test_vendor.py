"""What every vendor package must keep; add what this one promises beside it."""

from sglang_fl.conformance.suite import *  # noqa: F403 - the kit's tests, of VENDOR
from sglang_fl_toychip import TOYCHIP

VENDOR = TOYCHIP
