"""The shapes that are measured, as data. Source: the models' ``config.json``."""

from dataclasses import dataclass

__all__ = [
    "ATTENTIONS",
    "CONTEXTS",
    "DECODED",
    "EXPERTS",
    "EXTENDED",
    "LINEAR_ATTENTIONS",
    "MODELS",
    "PAGED_ATTENTIONS",
    "PROMPTS",
    "REQUESTS",
    "ROUTERS",
    "TOKENS",
    "TOKENS_OF_EXPERTS",
    "Attention",
    "Experts",
    "LinearAttention",
    "Model",
    "PagedAttention",
    "Router",
]


@dataclass(frozen=True)
class Model:
    """What of a dense model the fused ops see.

    Parameters
    ----------
    name : of the checkpoint
    hidden, intermediate : widths in elements
    heads, key_heads, head_size : of the attention; for DeepSeek-V3 the rotated part of its latent one
    is_neox_style : how it rotates
    """

    name: str
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    is_neox_style: bool = True


@dataclass(frozen=True)
class Router:
    """A router of experts.

    Parameters
    ----------
    name : of the checkpoint
    experts, top_k : their number, and how many of them a token takes
    groups, chosen_groups : of the experts; 1 of 1 where there are none
    is_biased : scores are sigmoids, with a correction bias
    """

    name: str
    experts: int
    top_k: int
    groups: int = 1
    chosen_groups: int = 1
    is_biased: bool = False


@dataclass(frozen=True)
class Experts:
    """The experts of one layer, as one GPU has them.

    Parameters
    ----------
    name : of the checkpoint, and how many GPUs share each expert
    experts, top_k : their number, and how many of them a token takes
    hidden, intermediate : widths in elements
    """

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int


@dataclass(frozen=True)
class Attention:
    """What lies between projection and attention of a model that norms query and key.

    Parameters
    ----------
    name : of the checkpoint
    heads, key_heads, head_size : of the attention, on one GPU
    rotary_dim : elements of a head that are rotated
    rotation_writes_cache : SGLang lets the rotation write the KV cache; else that is a kernel of its own
    """

    name: str
    heads: int
    key_heads: int
    head_size: int
    rotary_dim: int
    rotation_writes_cache: bool = False


@dataclass(frozen=True)
class LinearAttention:
    """A layer of linear attention by the gated delta rule, as one GPU has it.

    Parameters
    ----------
    name : of the checkpoint, and how many GPUs share its heads
    heads, value_heads : their number; query and key have as many
    keys, values : elements of a head of query and key, and of a value head
    taps : of the convolution
    """

    name: str
    heads: int
    value_heads: int
    keys: int
    values: int
    taps: int

    @property
    def channels(self) -> int:
        """Elements of query, key and value of a token."""
        return 2 * self.heads * self.keys + self.value_heads * self.values


@dataclass(frozen=True)
class PagedAttention:
    """A layer of attention over a pool of keys and values, as one GPU has it.

    Parameters
    ----------
    name : of the checkpoint, and how many GPUs share its heads
    heads, kv_heads : of queries and of keys
    keys, values : elements of a head
    is_latent : the values are the first part of the keys
    is_eight_bit : the pool is in FP8 (e4m3), else in 16 bit
    """

    name: str
    heads: int
    kv_heads: int
    keys: int
    values: int
    is_latent: bool = False
    is_eight_bit: bool = False

    @property
    def bytes_of_slot(self) -> int:
        """What a token takes in the pool."""
        elements = self.kv_heads * (self.keys + (0 if self.is_latent else self.values))
        return elements if self.is_eight_bit else 2 * elements


MODELS = (
    Model("Qwen2.5-0.5B", 896, 4864, 14, 2, 64),
    Model("Llama-3-8B", 4096, 14336, 32, 8, 128),
    Model("Qwen3-32B", 5120, 25600, 64, 8, 128),
    Model("DeepSeek-V3", 7168, 18432, 128, 1, 64, is_neox_style=False),
)
ATTENTIONS = (
    Attention("Qwen3-8B", 32, 8, 128, 128),
    Attention("Qwen3-30B-A3B", 32, 4, 128, 128, rotation_writes_cache=True),
    Attention("GLM-4.5-Air", 96, 8, 128, 64),
)
ROUTERS = (
    Router("Qwen3-30B-A3B", 128, 8),
    Router("DeepSeek-V3", 256, 8, 8, 4, is_biased=True),
)
EXPERTS = (
    Experts("Qwen3-30B-A3B", 128, 8, 2048, 768),
    Experts("Qwen3-235B-A22B tp 4", 128, 8, 4096, 384),
    Experts("DeepSeek-V2-Lite", 64, 6, 2048, 1408),
    Experts("DeepSeek-V3 tp 8", 256, 8, 7168, 256),
    Experts("GLM-4.5-Air", 128, 8, 4096, 1408),
    Experts("Mixtral-8x7B", 8, 2, 4096, 14336),
    Experts("gpt-oss-20b", 32, 4, 2880, 2880),
)
LINEAR_ATTENTIONS = (
    LinearAttention("Qwen3-Next-80B-A3B", 16, 32, 128, 128, 4),
    LinearAttention("Qwen3-Next-80B-A3B tp 4", 4, 8, 128, 128, 4),
)
PAGED_ATTENTIONS = (
    PagedAttention("Qwen2.5-0.5B", 14, 2, 64, 64),
    PagedAttention("Llama-3-8B", 32, 8, 128, 128),
    PagedAttention("Llama-3-8B FP8", 32, 8, 128, 128, is_eight_bit=True),
    PagedAttention("Qwen3-30B-A3B", 32, 4, 128, 128),
    PagedAttention("Llama-2-7B", 32, 32, 128, 128),
    PagedAttention("Gemma-2-9B", 16, 8, 256, 256),
    PagedAttention("DeepSeek-V3 tp 8", 16, 1, 576, 512, is_latent=True),
    PagedAttention("DeepSeek-V3", 128, 1, 576, 512, is_latent=True),
)
#: Sequences of a decode step, and tokens of each.
DECODED, CONTEXTS = (1, 4, 16, 64), (512, 4096, 32768)
#: Sequences of a prefill, tokens of the prefix of each, and new ones.
EXTENDED = ((1, 0, 512), (1, 0, 4096), (16, 0, 1024), (1, 8192, 1024), (8, 4096, 256), (32, 2048, 16))
#: Requests of a decode step, and prompts with their tokens.
REQUESTS = (1, 4, 16, 64, 256)
PROMPTS = ((1, 512), (1, 4096), (1, 8192), (16, 1024))
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
TOKENS_OF_EXPERTS = tuple(2**power for power in range(13))
