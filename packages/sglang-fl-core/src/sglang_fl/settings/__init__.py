"""What a user can set: read once from environment, file and vendor, checked, and refused by name."""

from sglang_fl.settings.model import (
    Setting,
    Settings,
    ask_for_bench,
    bench_folder,
    explain,
    markdown_table,
    prepare_environment,
    unknown_variables,
)
from sglang_fl.settings.sglang import SglangSettings

__all__ = [
    "Setting",
    "Settings",
    "SglangSettings",
    "ask_for_bench",
    "bench_folder",
    "explain",
    "markdown_table",
    "prepare_environment",
    "unknown_variables",
]
