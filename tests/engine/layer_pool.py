"""Keys and values of one layer, for tests that call an attention backend without an engine."""

import torch
from torch import Tensor

__all__ = ["Pool"]


class Pool:
    """Keys and values of one layer, by slot; SGLang's pools answer in the same way.

    Parameters
    ----------
    draw : draws both
    sizes : slots, heads of keys, elements of a head
    """

    def __init__(self, draw: torch.Generator, *sizes: int) -> None:
        self.keys, self.values = (torch.randn(*sizes, generator=draw) for _ in range(2))

    def get_key_buffer(self, layer_id: int) -> Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> Tensor:
        return self.values
