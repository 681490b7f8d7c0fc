"""What a user can set: read once from environment, file and vendor, checked, and refused by name."""

from sglang_fl.settings.credentials import api_key
from sglang_fl.settings.model import (
    ATTENTION,
    Setting,
    Settings,
    explain,
    markdown_table,
    prepare_environment,
    unknown_variables,
)
from sglang_fl.settings.processes import (
    ATEN_CALLS,
    ROOM,
    ask_for_bench,
    ask_for_profile,
    aten_calls_folder,
    bench_folder,
    is_launcher,
    profile_folder,
    room_for_calls,
)
from sglang_fl.settings.sglang import SglangSettings

__all__ = [
    "ATEN_CALLS",
    "ATTENTION",
    "ROOM",
    "Setting",
    "Settings",
    "SglangSettings",
    "api_key",
    "ask_for_bench",
    "ask_for_profile",
    "aten_calls_folder",
    "bench_folder",
    "explain",
    "is_launcher",
    "markdown_table",
    "prepare_environment",
    "profile_folder",
    "room_for_calls",
    "unknown_variables",
]
