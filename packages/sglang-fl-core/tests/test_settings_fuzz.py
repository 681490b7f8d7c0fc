"""Ten thousand random environments and files: each is a configuration or one complaint, none is a surprise.

No value is lost silently: what was given is in the settings, with its place, or was complained of.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_fl import startup
from sglang_fl.contradictions import refuse_contradictions, without_effect
from sglang_fl.errors import SettingsError
from sglang_fl.given import file_key, variable
from sglang_fl.ops import OPS
from sglang_fl.registry import installed_vendors
from sglang_fl.settings import PREFIXES, Settings, explain, unknown_variables
from sglang_fl.sglang_adapter import ADAPTERS
from sglang_fl.sglang_adapter.layer_lists import layer_lists

CONFIG = variable("config")
CLASSES = [layer_class.rpartition(":")[2] for layer_class in ADAPTERS]


def of(*words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words)


def joined(separator: str, items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, min_size=1, max_size=3).map(separator.join)


#: What an environment can hold: bytes but null; those that are no UTF-8 as Python shows them.
garbage = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.binary(max_size=8).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"\xff"))),
    of(" ", ",", ";;", "|", "=", "\n", "!", "0" * 5000, "{}", "[1]", "null", "None"),
)
switch = of("0", "1", "true", "False", "yes", "off", "2", "maybe")
op = of(*OPS, *OPS, "rms_nrom", "mm")
token = of(
    "flagos", "vendor", "reference", "vendor:cpu", "vendor:toy", "impl:reference", "impl:flagos.x", "flagso"
)
order = joined("|", token)
layers = joined(",", of(*CLASSES, *CLASSES, *OPS, "!rms_norm", "!rms_nrom", "RMSNrom", ""))
aten = joined(",", of("mm", "add.Tensor", "aten::mm", "!mm", "m m", ""))
vendors = joined(",", of("cpu", "cpu", "toy", "nvidia", "!cpu", ""))
path = of("dispatch.log", "/no/such/folder/file", "~", "a b", "\udcff")
NEARLY_RIGHT: dict[str, st.SearchStrategy[str]] = {
    "use_flaggems": switch,
    "flagos_whitelist": aten,
    "flagos_blacklist": aten,
    "flaggems_record": switch,
    "flaggems_log_path": path,
    "flaggems_log_once": switch,
    "oot_enabled": switch,
    "prefer": token,
    "per_op": joined(";", st.builds("{}={}".format, op, order)),
    "oot_whitelist": layers,
    "oot_blacklist": layers,
    "strict": switch,
    "allow_vendors": vendors,
    "deny_vendors": vendors,
    "dispatch_log": path,
    "platform": of("cpu", "cpu", "toy"),
    "log_level": of("DEBUG", "info", "Warning", "loud"),
    "dist_backend": of("flagcx", ""),
}


def mostly(right: st.SearchStrategy[str], wrong: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 9).flatmap(lambda number: right if number else wrong)


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    """Draw a few of our variables, seldom a wrong name, more seldom garbage."""
    names = draw(st.lists(of(*NEARLY_RIGHT), max_size=5, unique=True))
    environment = {variable(name): draw(mostly(NEARLY_RIGHT[name], garbage)) for name in names}
    if draw(st.integers(0, 5)) == 0:
        tail = draw(st.text(st.sampled_from("ABDEFLOPRST_"), max_size=8))
        environment[f"{draw(st.sampled_from(PREFIXES))}{tail}"] = draw(garbage)
    return environment


#: Values of a file: of the right shape, of another, nested.
shapes = st.recursive(
    st.one_of(garbage, st.none(), st.booleans(), st.integers(), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(garbage, inner, max_size=2)),
    max_leaves=4,
)


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, object]:
    """Draw the mapping of a file."""
    names = draw(st.lists(of(*NEARLY_RIGHT), max_size=5, unique=True))
    keys = {str(file_key(name)): name for name in names}
    values: dict[str, object] = {}
    for key, name in keys.items():
        right: st.SearchStrategy[object] = NEARLY_RIGHT[name]
        if name == "per_op":
            right = st.dictionaries(op, st.one_of(order, st.lists(token, max_size=3)), max_size=3)
        elif name.endswith(("list", "vendors")):
            right = st.one_of(right, st.lists(of(*CLASSES, *OPS, "cpu", "mm"), max_size=3))
        values[key] = draw(st.integers(0, 9).flatmap(lambda n, right=right: right if n else shapes))
    if draw(st.integers(0, 9)) == 0:
        values[draw(st.one_of(garbage, of("prefre", "per_op", "config")))] = draw(shapes)
    return values


def dumped(values: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file that was right before something was cut out of it and something put in."""
    text = dumped(draw(mappings())).encode("utf-8", "surrogateescape")
    cut = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    words = [
        b"!!python/object:os.system ",
        b"*x",
        b"&x ",
        b"{",
        b"[",
        b"'",
        b"\t",
        b"\n",
        b"- ",
        b": ",
        b"? ",
    ]
    put_in = draw(st.one_of(st.sampled_from(words), st.binary(max_size=4)))
    return text[: cut[0]] + put_in + text[cut[1] if cut[1] - cut[0] < 8 else cut[0] :]


@contextmanager
def environment_of(values: Mapping[str, str]) -> Iterator[None]:
    with mock.patch.dict(os.environ, values):
        yield


def complaints_about(values: Mapping[str, str]) -> list[str] | Settings:
    """Read settings as a start does; return them, or the lines of the one error."""
    try:
        read = Settings.read()
        refuse_contradictions(read)
        layer_lists(read)
    except SettingsError as error:
        lines = str(error).split("\n")
        for line in lines:
            assert line.startswith(tuple(name for name, text in values.items() if text)), line
            assert line.isprintable(), line
        return lines
    return read


def assert_nothing_is_lost(read: Settings, values: Mapping[str, str]) -> None:
    told = {setting.variable: setting.source for setting in explain(read)}
    warned = [*unknown_variables(), *without_effect(read)]
    for name, text in values.items():
        if name in told:
            assert told[name] == ("environment" if text else "default"), name
        else:
            assert [line for line in warned if line.startswith(f"{name}:")], name
    shown = {setting.variable: setting.value for setting in explain(read)}
    if all(text.isprintable() for text in values.values()):
        with environment_of(shown):
            assert dict(Settings.read()) == dict(read)


THOROUGH = settings(
    max_examples=4_000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@THOROUGH
@given(environments())
def test_environment_is_a_configuration_or_one_complaint(values: dict[str, str]):
    with environment_of(values):
        read = complaints_about(values)
        if isinstance(read, Settings):
            assert_nothing_is_lost(read, values)


@pytest.fixture(scope="module")
def file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "fl.yaml"


def is_unset(value: object) -> bool:
    return value is None or (not isinstance(value, bool | int | float) and not value)


@THOROUGH
@given(values=mappings(), others=st.one_of(st.just({}), environments()))
def test_file_is_a_configuration_or_one_complaint(
    file: Path, values: dict[str, object], others: dict[str, str]
):
    file.write_bytes(dumped(values).encode("utf-8", "surrogateescape"))
    environment = others | {CONFIG: str(file)}
    with environment_of(environment):
        read = complaints_about(environment)
        if isinstance(read, Settings):
            assert_nothing_is_lost(read, environment)
            names = {file_key(name): name for name in Settings.model_fields}
            for key, value in values.items():
                if not is_unset(value) and not environment.get(variable(str(names[key]))):
                    assert read.source(str(names[key])) == str(file)


@settings(THOROUGH, max_examples=2_000)
@given(content=st.one_of(damaged(), damaged(), st.binary(max_size=64), st.text(max_size=64).map(str.encode)))
def test_damaged_file_is_a_configuration_or_one_complaint(file: Path, content: bytes):
    file.write_bytes(content)
    with environment_of({CONFIG: str(file)}):
        complaints_about({CONFIG: str(file)})


@settings(THOROUGH, max_examples=200)
@given(environments())
def test_start_with_an_environment_is_a_configuration_or_one_complaint(values: dict[str, str]):
    installed = installed_vendors()
    found = mock.patch.object(startup, "installed_vendors", return_value=installed)
    with found, environment_of(values):
        complaint = ""
        try:
            startup.configure.__wrapped__()
        except SettingsError as error:
            complaint = str(error)
        assert not complaint or any(name in complaint for name in values)
