"""A random-weight Qwen2 checkpoint with a working tokenizer and chat template, made in a second.

Nothing is fetched. Its answers are noise, but every part of SGLang that serves a real model serves it.
"""

from pathlib import Path

__all__ = ["EOS", "VOCABULARY", "make_tiny_model"]

VOCABULARY = 512
EOS = "<|im_end|>"
_SPECIAL = ["<|endoftext|>", "<|im_start|>", EOS]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write config, weights, tokenizer and chat template to ``folder``; return it.

    Parameters
    ----------
    folder : created if missing; an existing checkpoint there is kept
    seed : of the weights
    """
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    _write_model(folder, seed)  # last: its file is the sign that the checkpoint is complete
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call, unused-ignore]
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Any text will do: all 256 bytes are in the alphabet, so every string can be encoded.
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[0],
        eos_token=EOS,
        pad_token=_SPECIAL[0],
        chat_template=_CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)


def _write_model(folder: Path, seed: int) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=_SPECIAL.index(EOS),
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # wide enough that every layer matters, and not chaotic
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
