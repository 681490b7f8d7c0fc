"""Fill in the templates of a vendor package.

A template is a text with ``@WORDS@``; its path names the file that it becomes.
"""

import importlib.util
import keyword
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from packaging.version import Version

from sglang_fl._version import __version__
from sglang_fl.errors import SettingsError, quoted
from sglang_fl.foreign_names import PUBLISHED
from sglang_fl.ops import OPS
from sglang_fl.vendor import CORE_API

__all__ = ["write_package"]

TEMPLATES = Path(__file__).with_name("template")
SUFFIX = ".tmpl"
#: Devices that PyTorch itself has: no package adds them, and none can be simulated.
BUILT_IN = ("cpu", "cuda", "mps", "xpu")
#: Devices of PyTorch's own that nobody may call another chip by.
KNOWN_DEVICES: tuple[str, ...] = (
    *("fpga", "hip", "hpu", "ideep", "ipu", "lazy", "maia", "meta", "mkldnn", "mtia", "opencl"),
    *("opengl", "privateuseone", "ve", "vulkan", "xla"),
)
#: Names of PyTorch's that are neither modules nor functions.
DTYPES = (
    "bool",
    "cdouble",
    "cfloat",
    "chalf",
    "double",
    "dtype",
    "float",
    "half",
    "int",
    "layout",
    "long",
    "short",
)
#: What a chip needs that PyTorch and SGLang do not know.
FOR_NEW_DEVICES = ("simulated.py", "platform.py")
TAKEN = ("cpu", "core")
GROUP = "sglang_fl.vendors"
#: What a package's README says where its chip can be simulated.
SIMULATED = """
Without the chip, on the simulated one:

```bash
SGLANG_FL_SIMULATED=@NAME@ sglang-fl verify
SGLANG_FL_SIMULATED=@NAME@ SGLANG_FL_DISPATCH_LOG=ran.txt python -m sglang.launch_server --model-path MODEL
```
"""
TODO = """\
- [ ] `pyproject.toml`: `authors`, and the description
- [ ] how the chip is found: in `src/{package}/probe.py`
- [ ] the chip's own operator: in `vendor/silu_and_mul.py`
- [ ] `requires=(...)` of each implementation, the library that its kernel imports: in `__init__.py`
"""
TODO_OF_NEW = (
    TODO
    + """\
- [ ] `torch_{device}`, which adds the device to PyTorch: in `probe.py`, `simulated.py`, `platform.py`
- [ ] `{device}_ccl`, its backend of `torch.distributed`: in `platform.py`, `simulated.py`
- [ ] `stand_ins` of the chip's other packages that kernels import: in `simulated.py`
"""
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def write_package(name: str, device_type: str, folder: Path, with_flag_gems: bool = False) -> list[Path]:
    """Write the package of a vendor.

    Parameters
    ----------
    name : the vendor's name; the package is called ``sglang-fl-<name>``
    device_type : PyTorch's string for its devices
    folder : where the package is written; must not exist
    with_flag_gems : whether FlagGems runs on the chip: its calls are listed, and its ATen kernels offered

    Returns
    -------
    list of Path : the files

    Raises
    ------
    SettingsError : such a name is not available, or the folder exists or cannot be written
    """
    for what, text in (("the vendor's name", name), ("--device-type", device_type)):
        if not _NAME.fullmatch(text):
            raise SettingsError(f"{what} {quoted(text)} must be up to 40 lower case letters, digits and '_'")
    reason = _why_taken(name) or _why_no_device_type(device_type)
    if reason:
        raise SettingsError(reason)
    words = _words(name, device_type, with_flag_gems)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        if folder.exists():
            raise SettingsError(f"{folder} exists already")
        paths = [path for path, text in _files(words, device_type) if _write(unfinished / path, text)]
        unfinished.rename(folder)  # at once: nobody ever finds half a package
    except OSError as error:
        raise SettingsError(f"{folder}: the package cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [folder / path for path in paths]


def _why_taken(name: str) -> str | None:
    if name in TAKEN:
        return f"the vendor's name {name!r} is core's own"
    if name in PUBLISHED:
        return f"the vendor's name {name!r} is that of the package sglang-fl-{name}"
    points = entry_points(group=GROUP, name=name)
    if points or importlib.util.find_spec(f"sglang_fl_{name}"):
        return f"the vendor's name {name!r} is that of a package that is installed here"
    return None


def _why_no_device_type(device_type: str) -> str | None:
    """Say why PyTorch could not call a new device so: ``torch.nn`` is something else.

    The files of PyTorch are looked at first: importing it takes seconds, and most names are answered by them.
    """
    if device_type in BUILT_IN:
        return None
    if keyword.iskeyword(device_type) or device_type in KNOWN_DEVICES or _is_in_torch(device_type):
        return f"--device-type {device_type!r}: PyTorch or Python has something else of that name"
    return None


def _is_in_torch(name: str) -> bool:
    """Whether ``torch.<name>`` is something already; PyTorch is read: to import it takes seconds."""
    spec = importlib.util.find_spec("torch")
    for folder in map(Path, (spec.submodule_search_locations if spec else None) or ()):
        if (folder / name).is_dir() or (folder / f"{name}.py").exists():
            return True
        defined = re.compile(rf'^(def|class) {name}\b|^ *"{name}",$|^{name}\b *[:=]', re.MULTILINE)
        for part in ("_C/_VariableFunctions.pyi", "_C/__init__.pyi", "functional.py", "__init__.py"):
            if (folder / part).exists() and defined.search((folder / part).read_text(encoding="utf-8")):
                return True
    return name in DTYPES or name in sys.stdlib_module_names  # it imports many of these


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _files(words: dict[str, str], device_type: str) -> Iterator[tuple[str, str]]:
    """Yield each file's path in the package and its text."""
    for path, template in _templates():
        if device_type in BUILT_IN and path.rpartition("/")[2] in FOR_NEW_DEVICES:
            continue
        path = path.replace("github/", ".github/workflows/").replace("/package/", f"/{words['PACKAGE']}/")
        text = re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], template.read_text(encoding="utf-8"))
        yield path, text


def _templates() -> Iterator[tuple[str, Path]]:
    """Yield each template with the path of what it becomes."""
    for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
        yield template.relative_to(TEMPLATES).as_posix().removesuffix(SUFFIX), template


def _words(name: str, device_type: str, with_flag_gems: bool) -> dict[str, str]:
    """Return what stands for each ``@WORD@``."""
    package, is_new = f"sglang_fl_{name}", device_type not in BUILT_IN
    camel = "".join(part.capitalize() for part in name.split("_"))
    more = f'    platform="{package}.platform.{camel}Platform",\n' if is_new else ""
    point = f'\n[project.entry-points."sglang_fl.simulated"]\n{name} = "{package}.simulated:CHIP"\n'
    return {
        "NAME": name,
        "PACKAGE": package,
        "OBJECT": name.upper(),
        "CLASS": f"{camel}Platform",
        "DEVICE": device_type,
        "CORE_API": str(CORE_API),
        "TORCH_MODULE": f"torch_{device_type}" if is_new else "torch",
        "SIMULATED_POINT": point if is_new else "",
        "WHERE": ", on the simulated chip where the real one is missing" if is_new else "",
        "SIMULATED": SIMULATED.replace("@NAME@", name) if is_new else "",
        "TODO": (TODO_OF_NEW if is_new else TODO).format(name=name, device=device_type, package=package),
        **_flag_gems_words(name, with_flag_gems, more),
    }


def _flag_gems_words(name: str, with_flag_gems: bool, more: str) -> dict[str, str]:
    own = Version(__version__)
    core = f'"sglang-fl-core>={own.major}.{own.minor},<{own.major}.{own.minor + 1}"'
    if not with_flag_gems:
        return {
            "DEPENDENCIES": core,
            "IMPORTS": "BackendKind, OpImpl, Vendor",
            "GEMS_IMPLS": "",
            "GEMS_ROW": "",
            "MORE": more,
        }
    environment = f'    environment={{"GEMS_VENDOR": "{name}"}},\n'
    return {
        "DEPENDENCIES": f'{core}, "flag-gems>=5.0.2,<6"',
        "IMPORTS": "BackendKind, OpImpl, Vendor, flag_gems_aten, flag_gems_impl",
        "GEMS_IMPLS": "".join(f'        flag_gems_impl("{op}"),\n' for op in _flag_gems_ops()),
        "GEMS_ROW": f"| {', '.join(f'`{op}`' for op in _flag_gems_ops())} | FlagGems, by core's calls |\n",
        "MORE": f"{more}    aten=flag_gems_aten(),\n{environment}",
    }


def _flag_gems_ops() -> list[str]:
    """Return the ops that core has a call of FlagGems for; none of them is imported."""
    return [op for op in OPS if importlib.util.find_spec(f"sglang_fl.flagos.{op}")]
