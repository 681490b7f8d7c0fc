"""An encoder and a decoder on the attention of ours: Whisper on SGLang's engine, judged by transformers.

Sounds are made on the spot. SGLang reads no text beside one: what it begins with is four tokens, the same for
all. As for the other families, mistakes are planted in the two ops and must be noticed.
"""

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sglang_fl.sglang_adapter.releases import ENCODER_DECODERS
from tests.engine.judge import DECODING, LIMIT, Difference, bench_in, distance
from tests.engine.mistaken_vendor import mistakes_of
from tests.engine.questions import answers_to, engine_arguments
from tests.engine.release import RELEASE, present
from tests.engine.words import make_tokenizer

pytestmark = [
    pytest.mark.timeout(300),
    present(RELEASE in ENCODER_DECODERS, "models with an encoder and a decoder on our attention"),
]

#: What SGLang lets each transcription begin with.
BEGINNING = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
RATE = 16000
SECONDS = 2
#: Of the encoder: two frames of a hundredth of a second make one.
SOURCES = 100 * SECONDS // 2
OPS = ("decode_attention", "extend_attention")
#: Nobody attends in a prompt's four tokens but to all of them before it.
NO_MISTAKES = {"extend_attention.other_window"}


@dataclass(frozen=True)
class Judged:
    """What the engine answered.

    Parameters
    ----------
    dispatched : the lines of the dispatch log
    differences : by what was asked: ``prompts``, ``again``, or a mistake's name
    tokens : those of the first answers, of all sounds
    """

    dispatched: set[str]
    differences: dict[str, Difference]
    tokens: list[list[int]]


def make_sound(path: Path, seed: int) -> torch.Tensor:
    """Write a tone that rises, of other length and height with each seed; return it as a reader finds it."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(RATE * SECONDS // (1 + seed)) / RATE
    tone = torch.sin(2 * torch.pi * (200 + 150 * seed) * time * (1 + time / 4))
    sound = 0.4 * tone + 0.1 * torch.randn(len(time), generator=generator)
    samples = (sound.clamp(-1, 1) * 32767).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return samples / 32768


def make_whisper(folder: Path) -> tuple[Any, Any, list[int]]:
    """Write a checkpoint; return model, extractor of features, and the tokens that answers begin with."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": BEGINNING})
    beginning = tokenizer.convert_tokens_to_ids(BEGINNING)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_source_positions=SOURCES,
        max_target_positions=64,
        decoder_start_token_id=beginning[0],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.AutoModelForSpeechSeq2Seq.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    features = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)
    features.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), features, beginning


@pytest.fixture(scope="module")
def judged(tmp_path_factory, environment_of) -> Judged:
    folder = tmp_path_factory.mktemp("whisper")
    model, features, beginning = make_whisper(folder / "model")
    paths = [folder / f"{number}.wav" for number in range(3)]
    sounds = [make_sound(path, seed) for seed, path in enumerate(paths)]
    seen = [
        features(sound.numpy(), sampling_rate=RATE, padding="max_length", return_tensors="pt")[
            "input_features"
        ]
        for sound in sounds
    ]
    bench = bench_in(folder, environment_of)
    run = answers_to(questions_about(folder / "model", paths, bench.planted), folder, bench.environment)

    def compare(rows: list[dict[str, Any]]) -> Difference:
        return difference(rows, model, seen, beginning)

    answers = run.result
    found = Judged(
        set(bench.log.read_text().splitlines()),
        {
            "prompts": compare(answers["prompts"]),
            "again": compare(answers["again"]),
            **{name: compare(rows) for name, rows in answers["mistakes"].items()},
        },
        [row["tokens"] for row in answers["prompts"]],
    )
    print(found)
    return found


def questions_about(model: Path, sounds: list[Path], planted: Path) -> dict[str, Any]:
    """Return what the engine is asked: each sound, three times, and once for each mistake."""
    request = {
        "prompt": [""] * len(sounds),
        "audio_data": [str(path) for path in sounds],
        "logprob_start_len": [0] * len(sounds),
    }
    engine = engine_arguments(model, attention_backend="sglang_fl", skip_tokenizer_init=False)
    requests = dict.fromkeys(("prompts", "followers", "mistaken"), request)
    return {"engine": engine, **requests, "mistakes": mistakes(), "planted": str(planted)}


def difference(
    rows: list[dict[str, Any]], model: torch.nn.Module, heard: list[torch.Tensor], beginning: list[int]
) -> Difference:
    """Return how far the engine's answers are from what transformers makes of the same sounds."""
    prefill, decode, tokens = 0.0, 0.0, 0
    for row, sound in zip(rows, heard, strict=True):
        text = torch.tensor([beginning + row["tokens"]])
        with torch.no_grad():
            logits = model(input_features=sound, decoder_input_ids=text, use_cache=False).logits
        logits, new = logits[0, :-1].double(), len(row["tokens"])
        expected = logits.log_softmax(-1).gather(-1, text[0, 1:, None])[:, 0]
        assert row["prompt_tokens"] == SOURCES + len(beginning)  # SGLang counts the encoder's, too
        assert row["cached_tokens"] == 0
        prefill = max(prefill, distance(row["prefill"][1:], expected[: len(beginning) - 1]))
        decode = max(decode, distance(row["decode"], expected[-new:]))
        tokens += int((logits[-new:].argmax(-1) != text[0, -new:]).sum())
    return Difference(prefill, decode, tokens)


def mistakes() -> list[str]:
    return [f"{op}.{name}" for op in OPS for name in mistakes_of(op) if f"{op}.{name}" not in NO_MISTAKES]


@pytest.mark.parametrize("asked", ["prompts", "again"])
def test_a_batch_of_sounds_agrees(judged: Judged, asked: str):
    difference = judged.differences[asked]
    assert difference.tokens == 0
    assert difference.prefill < LIMIT
    assert difference.decode < LIMIT


def test_what_is_heard_decides_what_is_said(judged: Judged):
    first, second, third = judged.tokens
    assert first != second != third != first


def test_attention_ran_on_ours(judged: Judged):
    assert {line for line in judged.dispatched if "Attention" in line} == {
        f"[OOT-DISPATCH] AttentionKernels.{method} → vendor(vendor.mistaken)"
        for method in ("decode", "extend", "write")
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_a_planted_mistake_is_noticed(judged: Judged, mistake: str):
    difference = judged.differences[mistake]
    found = difference.decode if mistake.partition(".")[0] in DECODING else difference.prefill
    assert found > LIMIT or difference.tokens
