"""The tables of the pages about benchmarks: what is written from small result files, and from none."""

from pathlib import Path

import pytest

from benchmarks.lookup import RESULTS, newest, read, served
from benchmarks.tables import write_table
from release.figures import pages
from release.figures.markdown import Cell, cells_of, mean, said, source, span, summary

ENGINE = ["figure", "side", "median", "ratio", "standard error of the ratio"]
OPS = ["op", "shape", "tokens", "flagos (µs)", "sglang (µs)", "fa3 (µs)", "copy (µs)"]
REQUEST, PREFILL = "1 request, 512 in, 128 out", "prefill of 1 x 512"


def about(release: str = "0.5.23", commit: str = "abc1234") -> str:
    versions = f"sglang {release}, sglang-fl-core 0.2.0, torch 2.11.0+cu130"
    return f"command; NVIDIA H200; commit {commit}, {versions}; 2026-11-29"


def an_engine(folder: Path, model: str, ratios: dict[str, str], release: str = "0.5.23") -> None:
    rows = [[REQUEST, "vanilla", "100.00", "1.000", "0.000"]]
    rows += [[REQUEST, side, "103.00", ratio, "0.010"] for side, ratio in ratios.items()]
    write_table(folder / f"bench_engine_h200_sglang-{release}_{model}.csv", about(release), ENGINE, rows)


def an_op(folder: Path, part: str, rows: list[list[str]], release: str = "0.5.23") -> None:
    write_table(folder / f"bench_ops_h200_sglang-{release}_{part}.csv", about(release), OPS, rows)


def rows_with(page: str, begin: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith(f"| {begin}")
    ]


def test_without_results_every_page_is_written_and_invents_nothing(tmp_path: Path):
    for blocks in pages(tmp_path).values():
        for block in blocks.values():
            assert "nan" not in block
    overview = pages(tmp_path)["benchmarks.md"]
    assert rows_with(overview["servers"], "Llama-3-8B ") == [["Llama-3-8B", *["–"] * 7]]
    (experts,) = rows_with(overview["kernels"], "[experts]")
    assert experts[2:] == ["–", "–", "–"]
    assert overview["server-summary"] == "Not measured yet.\n"


def test_a_cell_that_was_not_measured_is_a_dash(tmp_path: Path):
    an_engine(tmp_path, "Llama-3-8B", {"layer2": "1.030"})
    (row,) = rows_with(pages(tmp_path)["benchmarks.md"]["servers"], "Llama-3-8B ")
    assert row == ["Llama-3-8B", "0.5.23", "0.2.0", "1.030", "–", "–", "–", "–"]


def test_new_results_renew_table_and_summary(tmp_path: Path):
    an_engine(tmp_path, "Llama-3-8B", {"layer2": "1.030", "control": "0.900"})
    before = pages(tmp_path)["benchmarks-engine.md"]["server-summary"]
    an_engine(tmp_path, "Llama-3-8B", {"layer2": "0.950", "control": "1.000"})
    after = pages(tmp_path)["benchmarks-engine.md"]
    assert "Of all 1 cells 0 are below 1, 0 of them by more than two standard" in " ".join(before.split())
    told = " ".join(after["server-summary"].split())
    assert "Of all 1 cells 1 are below 1, 1 of them by more than two standard errors" in told
    assert "the least is 0.950 (Llama-3-8B on SGLang 0.5.23, 1 request; error 0.010)" in told
    assert "**0.950** (0.010)" in after["server-ratios"]
    assert "commit abc1234" in after["server-source"]


def test_of_a_model_the_deepest_cut_counts_for_each_release(tmp_path: Path):
    an_engine(tmp_path, "Qwen3-30B-A3B-10L", {"layer2": "1.010"}, "0.5.17")
    for model, ratio in (("Qwen3-30B-A3B-10L", "1.020"), ("Qwen3-30B-A3B-24L", "1.030")):
        an_engine(tmp_path, model, {"layer2": ratio})
    for model, ratio in (("DeepSeek-V2-Lite-10L", "1.040"), ("DeepSeek-V2-Lite", "1.050")):
        an_engine(tmp_path, model, {"layer2": ratio})
    found = [(one.model, one.table.release) for one in served(tmp_path)]
    assert found == [
        ("Qwen3-30B-A3B-10L", "0.5.17"),
        ("Qwen3-30B-A3B-24L", "0.5.23"),
        ("DeepSeek-V2-Lite", "0.5.23"),
    ]


@pytest.mark.parametrize(
    ("sides", "ours"),
    [
        (["layer2", "layer2:decode_attention=sglang", "control"], "layer2"),
        (["layer2", "layer2:decode_attention=flagos", "control"], "layer2:decode_attention=flagos"),
        (["layer2", "layers12"], "layer2"),
        (["control"], None),
    ],
)
def test_ours_is_the_side_with_all_of_our_kernels(tmp_path: Path, sides: list[str], ours: str | None):
    an_engine(tmp_path, "Llama-3-8B", dict.fromkeys(sides, "1.000"))
    (one,) = served(tmp_path)
    assert one.ours == ours


def test_of_an_op_the_newest_release_counts(tmp_path: Path):
    for release in ("0.5.9", "0.5.23", "0.5.17"):
        an_op(tmp_path, "rms_norm", [], release)
        an_op(tmp_path, "rms_norm_gated", [], "0.6.0")
    found = newest("bench_ops", "rms_norm", tmp_path)
    assert found
    assert found.release == "0.5.23"
    assert newest("bench_ops", "layer_norm", tmp_path) is None


def test_the_pages_tell_of_one_chip(tmp_path: Path):
    rows = [["rms_norm", "4096", "1", "1.00", "2.00", "", ""]]
    an_op(tmp_path, "rms_norm", rows, "0.5.24")
    an_engine(tmp_path, "Llama-3-8B", {"layer2": "1.030"}, "0.5.24")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("h200", "b200")))
    an_op(tmp_path, "rms_norm", rows, "0.5.23")
    an_engine(tmp_path, "Llama-3-8B", {"layer2": "1.030"}, "0.5.23")
    found = newest("bench_ops", "rms_norm", tmp_path)
    assert found
    assert found.release == "0.5.23"
    assert [one.table.release for one in served(tmp_path)] == ["0.5.23"]


def test_a_summary_says_mean_least_and_how_many_are_below_one():
    cells = [Cell(2.0, "a"), Cell(0.5, "b"), Cell(1.0, "c")]
    assert mean(cells) == pytest.approx(1.0)
    assert summary(cells) == "**1.00** in the geometric mean of 3 cells, least 0.500 (b); one is below 1"
    assert (
        summary(cells[::2]) == "**1.41** in the geometric mean of 2 cells, least 1.000 (c); none is below 1"
    )
    assert summary([]) == "not measured"
    assert span([0.5, None, 2.0]) == "0.50 to 2.00"
    assert span([1.0, 1.0]) == "1.00"


def test_a_library_that_is_not_there_has_no_cells(tmp_path: Path):
    shape = "Llama-3-8B 32/8x128 context 512"
    rows = [
        ["decode_attention", shape, "1", "10", "20", "", "5"],
        ["decode_attention", shape, "4", "10", "8", "15", "5"],
    ]
    an_op(tmp_path, "decode_attention", rows)
    found = newest("bench_ops", "decode_attention", tmp_path)
    assert found
    assert [one.ratio for one in cells_of(found.rows, "fa3 (µs)")] == [1.5]
    assert cells_of(found.rows, "flashinfer (µs)") == []
    decode = pages(tmp_path)["benchmarks-attention.md"]["decode"]
    (row,) = rows_with(decode, "Llama-3-8B")
    assert row == [
        "Llama-3-8B 32/8x128",
        "2.00 **0.80** – –",
        *["– – – –"] * 2,
        "1.26",
        "**0.80**",
        "–",
        "1.50",
    ]
    assert "FlashInfer's was not measured." in decode


@pytest.mark.parametrize("begin", range(120, 145))
def test_no_line_of_a_paragraph_begins_a_list(begin: int):
    lines = said("x" * begin, "1 x (0 + 512) and more").splitlines()
    assert not [line for line in lines if line.startswith(("+", "-", "*"))]
    assert " ".join(lines).endswith("1 x (0 + 512) and more")


def test_several_files_are_told_in_one_word(tmp_path: Path):
    for part in ("rms_norm", "layer_norm"):
        an_op(tmp_path, part, [])
    tables = [newest("bench_ops", part, tmp_path) for part in ("rms_norm", "layer_norm", "routing")]
    told = source(tables)
    assert "bench_ops_h200_sglang-0.5.23_{rms_norm,layer_norm}.csv" in told
    assert told.count("abc1234") == 1
    assert source([None]) == "Not measured yet.\n"


def test_every_result_names_its_day_and_device():
    for path in RESULTS.glob("bench_*.csv"):
        facts = read(path).facts
        assert "?" not in (facts[""], facts["measured "]), path.name
