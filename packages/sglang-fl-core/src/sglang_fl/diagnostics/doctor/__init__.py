"""``sglang-fl doctor``: from a symptom to its cause and what to do about it; one file for each subject."""

from sglang_fl.diagnostics.doctor.checks import CHECKS, Row, examine, exit_code
from sglang_fl.diagnostics.doctor.finding import Finding, State
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["CHECKS", "Finding", "Launch", "Row", "State", "examine", "exit_code"]
