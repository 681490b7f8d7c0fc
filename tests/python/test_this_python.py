"""What of core needs no torch, on each Python that the metadata promise: it is read, imported, and works.

torch comes with gigabytes for each Python, so SGLang and all that imports torch run on one Python alone.
"""

import importlib
from pathlib import Path

import pytest

import sglang_fl

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
#: What this environment leaves out, and a machine that serves has.
LEFT_OUT = {"torch", "sglang", "triton", "flag_gems"}
#: Modules that need none of that, however other imports change.
FREE = (
    *("sglang_fl.errors", "sglang_fl.platform", "sglang_fl.bisect.delta", "sglang_fl.logs.dispatch_log"),
    *("sglang_fl.logs.redaction", "sglang_fl.sglang_adapter.seams", "sglang_fl.sglang_adapter.source"),
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_valid_and_warns_of_nothing(path: Path, recwarn: pytest.WarningsRecorder):
    compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    assert [str(warning.message) for warning in recwarn] == []


def all_modules() -> list[str]:
    """Return the names of core's modules, without importing one."""
    source = Path(next(iter(sglang_fl.__path__)))
    paths = [path.relative_to(source.parent).with_suffix("") for path in source.rglob("*.py")]
    files = [path for path in paths if "template" not in path.parts and "__main__" not in path.parts]
    return sorted({".".join(path.parts).removesuffix(".__init__") for path in files})


@pytest.mark.parametrize("name", all_modules())
def test_a_module_is_imported_as_far_as_what_is_left_out(name: str):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
    else:
        missing = ""
    assert not missing or (missing in LEFT_OUT and name not in FREE)
