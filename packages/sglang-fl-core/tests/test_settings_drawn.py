"""Drawn environments and files: each is a configuration in which all of it counts, or one error."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_fl import startup
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.settings import Settings
from sglang_fl.settings.sources import variable
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.sglang_adapter.layers import ADAPTERS

pytestmark = pytest.mark.timeout(300)

STEADY = {
    "max_examples": 5_000 if os.environ.get("TEST_THOROUGHLY") == "1" else 500,
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
#: What an environment can hold: no null character, and bytes that are no UTF-8 as lone surrogates.
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
BYTES = st.binary(min_size=1, max_size=6).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)
NAMES = [*OPS, *(path.rpartition(":")[2].partition(".")[0] for path in ADAPTERS)]
KINDS = ("flagos", "vendor", "reference", "vendor:cpu", "vendor:nvidia", "impl:reference", "impl:flagos")


def misspelt(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return words, now and then with a letter too few or one too many."""
    cut = st.tuples(words, st.integers(0, 8)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[0][drawn[1] + 1 :]
    )
    return st.one_of(words, words, words, cut, words.map(lambda word: f" {word} "), words.map(str.upper))


def joined(items: st.SearchStrategy[str], separator: str) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=3).map(separator.join)


ORDER = joined(misspelt(st.sampled_from(KINDS)), "|")
PAIR = st.tuples(misspelt(st.sampled_from(list(OPS))), ORDER).map("=".join)
LAYERS = joined(
    misspelt(st.one_of(st.sampled_from(NAMES), st.sampled_from(list(OPS)).map("!{}".format))), ","
)
ATEN = joined(misspelt(st.sampled_from(["mm", "add.Tensor", "aten::bmm", "!mm"])), ",")
VENDORS = joined(misspelt(st.sampled_from(["cpu", "nvidia"])), ",")
BOOL = st.sampled_from(["1", "0", "true", "no", "yes", "2", "-1", ""])

TEXTS: dict[str, st.SearchStrategy[str]] = {
    **dict.fromkeys(("use_flaggems", "flaggems_record", "flaggems_log_once", "oot_enabled", "strict"), BOOL),
    **dict.fromkeys(("flagos_whitelist", "flagos_blacklist"), ATEN),
    **dict.fromkeys(("oot_whitelist", "oot_blacklist"), LAYERS),
    **dict.fromkeys(("allow_vendors", "deny_vendors"), VENDORS),
    "per_op": joined(PAIR, ";"),
    "prefer": misspelt(st.sampled_from(KINDS[:3])),
    "log_level": misspelt(st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR"])),
    "platform": misspelt(st.sampled_from(["cpu", "nvidia"])),
    "dist_backend": st.sampled_from(["", "flagcx"]),
    "keep_calls": st.sampled_from(["/tmp/calls", "calls"]),
    "keep_calls_each": BOOL,
    "dispatch_log": st.sampled_from(["/tmp/a.log", "relative.log", "x" * 300]),
    "flaggems_log_path": st.just("/tmp/aten.log"),
    "verify": joined(misspelt(st.sampled_from([*OPS, "attention", "all"])), ","),
    "verify_rate": st.sampled_from(["1", "1/64", "1/0", "2/3", "0.5", ""]),
    "simulated": misspelt(st.sampled_from(["nochip", "otherchip"])),
    "simulated_record": st.just("/tmp/asked.txt"),
}
VALUE = {name: st.one_of(text, text, text, ANYTHING, BYTES) for name, text in TEXTS.items()}
UNKNOWN = st.sampled_from(["SGLANG_FL_PREFERS", "SGLANG_FL_PEROP", "SGLANG_FLAGGEMS_RECRD", "SGLANG_FL_"])


def some(values: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[dict[str, object]]:
    """Return a mapping of at most five of these names."""
    names = st.lists(st.sampled_from(sorted(values)), max_size=5, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))


def test_every_setting_is_drawn():
    assert {*TEXTS, "config"} == set(Settings.model_fields)


@pytest.fixture(scope="module", autouse=True)
def one_search_for_vendors() -> Iterator[None]:
    """What is installed does not change meanwhile, and looking for it takes longest."""
    found = startup.installed_vendors()
    with mock.patch.object(startup, "installed_vendors", return_value=found):
        yield


@contextmanager
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sglang_fl")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def configured(environment: dict[str, str]) -> tuple[Settings | None, list[str], list[str]]:
    """Return the settings, or the lines of the error; and what was warned of."""
    with mock.patch.dict(os.environ, environment), warnings() as said:
        try:
            configuration = startup.configure.__wrapped__()
            layer_lists(configuration.settings)
        except SettingsError as error:
            return None, str(error).splitlines(), said
    return configuration.settings, [], said


def counts(own: Settings, name: str, given_as: object) -> bool:
    """Whether a setting is what was given: the same words, in whatever order a list keeps them."""
    value, text = getattr(own, name), given_as if isinstance(given_as, str) else ""
    if isinstance(value, bool):
        return value == (text.lower() in ("1", "true", "yes", "on", "t", "y"))
    if name == "per_op":
        pairs = text.split(";") if text else [f"{op}={as_order(order)}" for op, order in given_as.items()]
        wanted = {tuple(part.strip() for part in pair.split("=")) for pair in pairs}
        return {(op, "|".join(map(str, order))) for op, order in value.items()} == {
            (op, "|".join(step.strip() for step in order.split("|"))) for op, order in wanted
        }
    if name.endswith(("list", "vendors")):
        words = text.split(",") if text else given_as
        kept = str(value).split(",") if name.endswith("list") else list(value)
        return sorted(word.strip() for word in words) == sorted(kept)
    if name == "verify":
        words = {word.strip() for word in (text.split(",") if text else given_as)}
        return set(value) == ({*OPS, "attention"} if "all" in words else words)
    if isinstance(value, Path):
        return value == Path(text)
    return str(value.value if hasattr(value, "value") else value) in (text, text.upper())


def as_order(order: object) -> str:
    return order if isinstance(order, str) else "|".join(order)


@settings(**STEADY)
@given(values=some(VALUE), unknown=st.one_of(st.none(), st.none(), UNKNOWN))
def test_an_environment_counts_in_full_or_is_one_error(values: dict[str, str], unknown: str | None):
    environment = {variable(name): text for name, text in values.items()}
    own, lines, said = configured(environment | ({unknown: "1"} if unknown else {}))
    given_names = [name for name, text in values.items() if text]
    if own is None:
        assert lines
        for line in lines:
            assert any(variable(name) in line for name in given_names), line
    else:
        for name in given_names:
            assert own.source(name) == "environment"
            assert counts(own, name, values[name]), name
        if unknown and own.log_level != "ERROR":
            assert any(line.startswith(f"{unknown}: there is no such variable") for line in said)


LIST = st.lists(misspelt(st.sampled_from(NAMES)), max_size=3)
IN_FILE: dict[str, st.SearchStrategy[object]] = {
    **VALUE,
    "oot_whitelist": st.one_of(LAYERS, LIST),
    "oot_blacklist": st.one_of(LAYERS, LIST),
    "op_backends": st.dictionaries(
        misspelt(st.sampled_from(list(OPS))),
        st.one_of(ORDER, st.lists(misspelt(st.sampled_from(KINDS)), max_size=2)),
        max_size=3,
    ),
    "prefers": st.just("vendor"),
    "strict": st.one_of(BOOL, st.integers(-1, 2), st.none(), LIST),
}
del IN_FILE["per_op"]


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, dict[str, object] | None]:
    """Return a file, and what it says where that is known."""
    says = draw(some(IN_FILE))
    text = yaml.safe_dump(says, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans()))
    raw = text.encode("utf-8", "surrogateescape")
    how = draw(st.sampled_from(["whole", "whole", "cut", "spliced", "bytes"]))
    if how == "whole":
        return raw, says
    at = draw(st.integers(0, len(raw)))
    if how == "bytes":
        return draw(st.binary(max_size=40)), None
    middle = draw(st.sampled_from([b"&a ", b"*a", b"!!int ", b"\t", b"{", b"]", b": ", b"\xff", b"---\n"]))
    return raw[:at] + (middle + raw[at:] if how == "spliced" else b""), None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, written anew for each example."""
    return tmp_path_factory.mktemp("drawn") / "fl.yaml"


@settings(**STEADY)
@given(file=files(), over=some({name: VALUE[name] for name in ("prefer", "strict", "oot_blacklist")}))
def test_a_file_counts_in_full_or_is_one_error(
    path: Path, file: tuple[bytes, dict[str, object] | None], over: dict[str, str]
):
    raw, says = file
    path.write_bytes(raw)
    environment = {variable(name): text for name, text in over.items()}
    own, lines, _ = configured(environment | {variable("config"): str(path)})
    titles = ["SGLANG_FL_CONFIG", *(variable(name) for name, text in over.items() if text)]
    if own is None:
        assert lines
        for line in lines:
            assert any(title in line for title in titles), line
        return
    for name in (name for name, text in over.items() if text):
        assert own.source(name) == "environment"
    for key, value in (says or {}).items():
        name = "per_op" if key == "op_backends" else key
        if not value or over.get(name):  # an empty one counts as unset, one in the environment comes first
            continue
        assert own.source(name) == str(path)
        assert counts(own, name, value if isinstance(value, (str, list, dict)) else str(value)), key
