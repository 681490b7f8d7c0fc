"""Doctor and the start, of models that the attention of our platforms cannot compute."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from doctor_rows import Doctor
from sglang_fl import platform as platform_module
from sglang_fl.diagnostics.doctor import State
from sglang_fl.diagnostics.doctor.attention import _judged
from sglang_fl.diagnostics.doctor.child import Child
from sglang_fl.platform import NoTriton, TorchNative, soft_caps
from sglang_fl.sglang_adapter.releases import SPECULATION

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with a ``config.json``."""

    def model(**config: object) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return model


@pytest.mark.parametrize(
    ("config", "caps"),
    [
        ({"attn_logit_softcapping": 50.0}, {"attn_logit_softcapping": 50.0}),
        ({"text_config": {"final_logit_softcapping": 30}}, {"final_logit_softcapping": 30}),
        ({"attn_logit_softcapping": None, "final_logit_softcapping": 0}, {}),
        ({"router_logit_softcapping": 30.0, "text_config": None}, {}),
    ],
)
def test_soft_caps_are_read_from_all_parts_of_the_configuration(config, caps):
    assert soft_caps(config) == caps


def test_doctor_tells_which_attention_a_model_needs(doctor: Doctor, model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder = model(attn_logit_softcapping=50.0)
    code, rows = doctor("--model", str(folder), "--only", "attention")
    assert (code, rows["attention"]["state"]) == (0, "ok"), rows
    reason = "torch_native does not apply attn_logit_softcapping=50"
    assert rows["attention"]["text"].startswith(f"sglang_fl on cpu, because {reason}")


CHIP = SimpleNamespace(registry=SimpleNamespace(vendor=SimpleNamespace(device_type="toy")))


@pytest.mark.parametrize(
    ("child", "state", "text"),
    [
        (Child(0, "", ""), State.OK, "torch_native on toy"),
        (Child(0, "torch_native is wrong", ""), State.PROBLEM, "config.json: torch_native is wrong"),
        (Child(0, "torch_native is wrong\nsglang_fl runs here", ""), State.OK, "sglang_fl on toy, because"),
    ],
    ids=["right", "wrong", "ours is there"],
)
def test_attention_that_computes_something_else_is_found(child: Child, state: State, text: str):
    (finding,) = _judged("torch_native", child, CHIP, None)  # type: ignore[arg-type]
    assert (finding.state, text in finding.text) == (state, True)


class _Older:
    def apply_server_args_defaults(self, server_args: object) -> None:
        """Do nothing, as SGLang's."""


class _Newer(_Older):
    def post_load_model(self, model: object) -> None:
        """Do nothing, as that of SGLang from 0.5.22 on."""


class _Newest(_Newer):
    def get_speculative_worker_cls(self, algorithm: str) -> None:
        """Return None, as that of SGLang from 0.5.23 on."""


class _Platform(TorchNative, _Older):
    device_name = device_type = "toy"


class _NewerPlatform(NoTriton, TorchNative, _Newer):
    device_name = device_type = "toy"


class _NewestPlatform(NoTriton, TorchNative, _Newest):
    device_name = device_type = "toy"


def arguments(folder: Path, **given: object) -> SimpleNamespace:
    plain = {"speculative_algorithm": None, "attention_backend": None, "model_path": str(folder)}
    return SimpleNamespace(**{**plain, **given})


CAPPED = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


@pytest.mark.parametrize(
    ("platform", "config", "given", "backend", "told"),
    [
        (_Platform, CAPPED, {}, None, ["the attention backend torch_native does not", "final_logit_soft"]),
        (_NewerPlatform, CAPPED, {}, "sglang_fl", []),
        (_NewerPlatform, {"architectures": ["GraniteSWAForCausalLM"]}, {}, "sglang_fl", []),
        (_NewerPlatform, {"text_config": {"kv_lora_rank": 512}}, {}, "sglang_fl", []),
        (_NewerPlatform, {"text_config": {"attention_chunk_size": 8192}}, {}, "sglang_fl", []),
        (
            _Platform,
            {"attention_chunk_size": 8192},
            {},
            None,
            ["the attention backend torch_native lets tokens see more than their own chunk of 8192"],
        ),
        (_NewerPlatform, {"final_logit_softcapping": 30.0}, {}, None, []),
        (
            _NewerPlatform,
            CAPPED,
            {"attention_backend": "torch_native"},
            "torch_native",
            ["the attention"],
        ),
        (_NewerPlatform, CAPPED, {"attention_backend": "triton"}, "triton", []),
        (_NewerPlatform, CAPPED, {"decode_attention_backend": "triton"}, None, []),
    ],
    ids=[
        "old",
        "new",
        "pool for windows",
        "latents",
        "chunks",
        "chunks, old",
        "final alone",
        "named",
        "another",
        "another for decode",
    ],
)
def test_a_start_chooses_the_attention_that_a_model_needs_or_warns(
    model, caplog, platform, config, given, backend, told
):
    started = arguments(model(**config), **given)
    platform().apply_server_args_defaults(started)
    assert started.attention_backend == backend
    found = [r.message.removeprefix("config.json: ") for r in caplog.records if r.levelname == "WARNING"]
    assert [message[: len(t)] for message, t in zip(found, told, strict=True)] == told


@pytest.mark.parametrize(
    ("platform", "given", "message"),
    [
        (_Platform, "EAGLE", "SGLang 0.5.23 is the first whose can be replaced."),
        (_NewerPlatform, "ngram", "SGLang 0.5.23 is the first whose can be replaced."),
        (_NewestPlatform, "NGRAM", "SGLang has it on other devices alone. Valid: EAGLE, NEXTN, STANDALONE."),
        (_NewestPlatform, "DSPARK", "nothing replaces them. Valid: EAGLE, NEXTN, STANDALONE."),
    ],
)
def test_speculation_that_cannot_run_is_refused_with_one_line(model, capsys, platform, given, message):
    with pytest.raises(SystemExit, match="2"):
        platform().apply_server_args_defaults(arguments(model(), speculative_algorithm=given))
    (line,) = capsys.readouterr().err.splitlines()
    start = f"sglang-fl: --speculative-algorithm {given}: its kernels do not run on toy, and "
    assert line == start + message
    assert not platform().supports_speculative_algorithm(given.upper())


def test_speculation_chooses_the_attention_that_checks_drafts(model, monkeypatch):
    monkeypatch.setattr(platform_module, "_keeps_states", lambda server_args: False)
    started = arguments(model(), speculative_algorithm="eagle", disable_overlap_schedule=False)
    platform = _NewestPlatform()
    platform.apply_server_args_defaults(started)
    assert (started.attention_backend, started.disable_overlap_schedule) == ("sglang_fl", True)
    default = platform.get_default_speculative_draft_attention_backend("EAGLE")
    assert platform.supports_speculative_draft_attention_backend("EAGLE", default)
    assert not platform.supports_speculative_draft_attention_backend("EAGLE", "triton")


def test_messages_name_the_release_of_the_table():
    assert SPECULATION.first == "0.5.23"  # where ``platform`` writes it, which cannot see the table
