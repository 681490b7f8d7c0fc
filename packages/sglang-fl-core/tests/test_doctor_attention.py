"""Doctor and the start, of models that the attention of our platforms cannot compute."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_fl.diagnostics.doctor import State
from sglang_fl.diagnostics.doctor.attention import _judged
from sglang_fl.diagnostics.doctor.child import Child
from sglang_fl.platform import TorchNative, soft_caps

Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]


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


def test_soft_cap_that_is_not_applied_is_found(doctor: Doctor, model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder = model(attn_logit_softcapping=50.0)
    code, rows = doctor("--model", str(folder), "--only", "attention")
    assert (code, rows["attention"]["state"]) == (1, "problem"), rows
    assert rows["attention"]["text"].startswith("config.json: attn_logit_softcapping=50: ")
    assert "torch_native does not apply it" in rows["attention"]["text"]


CHIP = SimpleNamespace(registry=SimpleNamespace(vendor=SimpleNamespace(device_type="toy")))


@pytest.mark.parametrize(
    ("child", "state", "text"),
    [
        (Child(0, "", ""), State.OK, "torch_native on toy"),
        (
            Child(1, "", "TypeError: unexpected keyword argument 'enable_gqa'"),
            State.PROBLEM,
            "fails for models with fewer key than query heads: TypeError: unexpected keyword argument",
        ),
    ],
    ids=["takes grouped heads", "does not"],
)
def test_attention_that_takes_no_grouped_heads_is_found(child: Child, state: State, text: str):
    (finding,) = _judged("torch_native", child, CHIP, None)  # type: ignore[arg-type]
    assert (finding.state, text in finding.text) == (state, True)


class _Base:
    def apply_server_args_defaults(self, server_args: object) -> None:
        """Do nothing, as SGLang's."""


class _Platform(TorchNative, _Base):
    device_name = "toy"


def arguments(folder: Path, **given: object) -> SimpleNamespace:
    plain = {"speculative_algorithm": None, "attention_backend": None, "model_path": str(folder)}
    return SimpleNamespace(**{**plain, **given})


@pytest.mark.parametrize(("backend", "is_told"), [(None, True), ("torch_native", True), ("triton", False)])
def test_start_tells_of_soft_caps_where_nothing_applies_them(model, caplog, backend, is_told: bool):
    folder = model(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    _Platform().apply_server_args_defaults(arguments(folder, attention_backend=backend))
    told = [record.message for record in caplog.records]
    assert [message.partition(":")[0] for message in told] == ["config.json"] * (2 * is_told)
    assert all("softcapping" in message for message in told)


@pytest.mark.parametrize("algorithm", ["NGRAM", "EAGLE"])
def test_start_with_speculation_is_refused_with_one_line(model, capsys, algorithm: str):
    with pytest.raises(SystemExit, match="2"):
        _Platform().apply_server_args_defaults(arguments(model(), speculative_algorithm=algorithm))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sglang-fl: --speculative-algorithm {algorithm}: ")
    assert not _Platform().supports_speculative_algorithm(algorithm)
