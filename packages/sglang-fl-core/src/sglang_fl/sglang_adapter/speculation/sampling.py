"""Which drafted tokens are accepted where tokens are drawn, in plain PyTorch.

Functions have the names and signatures of those of SGLang that they replace, or that it has on CUDA alone.
"""

import torch
from torch import Tensor

from sglang_fl.sglang_adapter.speculation.trees import walk

__all__ = ["top_k_renorm_prob", "top_p_renorm_prob", "tree_speculative_sampling_target_only"]


def top_k_renorm_prob(probs: Tensor, top_ks: Tensor) -> Tensor:
    """Return probabilities, (R, V), of which each row keeps its ``top_ks`` largest, (R,)."""
    largest = probs.sort(-1, descending=True).values
    last = largest.gather(1, top_ks.long().clamp(1, probs.shape[1]).unsqueeze(1) - 1)
    return _renormalised(probs.masked_fill(probs < last, 0.0))


def top_p_renorm_prob(probs: Tensor, top_ps: Tensor) -> Tensor:
    """Return probabilities, (R, V), of which each row keeps the fewest that come to ``top_ps``, (R,)."""
    largest, places = probs.sort(-1, descending=True)
    before = largest.cumsum(-1) - largest
    largest = largest.masked_fill(before >= top_ps.unsqueeze(1), 0.0)
    return _renormalised(torch.zeros_like(probs).scatter_(1, places, largest))


def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool = True,
) -> None:
    """Accept drafts so that tokens are distributed as those of the target model, if both thresholds are 1.

    Behind an accepted node a number between 0 and 1 is drawn. Its children take their probability of it, one
    after the other, until one is hit. Where none is, the token is drawn from what the children left.

    Parameters
    ----------
    predicts, accept_index, accept_token_num, candidates : as of ``trees.verify_tree_greedy_func``
    retrive_index, retrive_next_token, retrive_next_sibling : likewise
    uniform_samples : Tensor, (B, N): the numbers drawn behind each node
    uniform_samples_for_final_sampling : Tensor, (B,): those for the last token
    target_probs : Tensor, (B, N, V): the target model's behind each node
    draft_probs : Tensor, (B, N, V), not looked at: the draft model's
    threshold_single : a child with this probability is accepted whatever was drawn
    threshold_acc : the probabilities count as divided by it
    deterministic : not looked at: it always is
    """
    tokens, rows = candidates.tolist(), retrive_index.tolist()
    links = zip(retrive_next_token.tolist(), retrive_next_sibling.tolist(), strict=True)
    for number, (children, siblings) in enumerate(links):
        drawn = uniform_samples[number].tolist()
        offer = _Offer(target_probs[number], drawn, tokens[number], (threshold_single, threshold_acc))
        path = walk(children, siblings, accept_index.shape[1], offer.accepts)
        found = [rows[number][node] for node in path]
        last = offer.draw(path[-1], float(uniform_samples_for_final_sampling[number]))
        behind = [*(tokens[number][node] for node in path[1:]), last]
        predicts[found] = torch.tensor(behind, dtype=predicts.dtype, device=predicts.device)
        accept_index[number, : len(found)] = torch.tensor(found, dtype=accept_index.dtype)
        accept_token_num[number] = len(found) - 1


class _Offer:
    """The probabilities behind the nodes of a tree, of which children that were not hit have taken theirs.

    Parameters
    ----------
    probs : Tensor, (N, V)
    drawn : the number drawn behind each node
    tokens : of the nodes
    thresholds : a child with the first as its probability is accepted whatever was drawn; probabilities count
        as divided by the second
    """

    def __init__(
        self, probs: Tensor, drawn: list[float], tokens: list[int], thresholds: tuple[float, float]
    ) -> None:
        self._probs = probs
        self._left = probs.clone()
        self._drawn = drawn
        self._tokens = tokens
        self._taken = [0.0] * len(tokens)
        self._single, self._accumulated = thresholds

    def accepts(self, node: int, child: int) -> bool:
        """Whether the next child of a node is hit; where not, its probability is taken."""
        token = self._tokens[child]
        share = float(self._left[node, token])
        self._taken[node] += share
        is_hit = self._drawn[node] < self._taken[node] / self._accumulated or share >= self._single
        if share > 0 and is_hit:
            return True
        self._left[node, token] = 0.0
        return False

    def draw(self, node: int, drawn: float) -> int:
        """Return a token of what is left behind a node."""
        sums = self._left[node].double().cumsum(0)
        if not sums[-1]:  # rounding has left nothing
            return int(self._probs[node].argmax())
        return int(torch.searchsorted(sums, drawn * sums[-1], right=True))


def _renormalised(probs: Tensor) -> Tensor:
    return probs / probs.sum(-1, keepdim=True)
