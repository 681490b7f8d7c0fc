"""Which layers the user leaves to SGLang: ``SGLANG_FL_OOT_WHITELIST`` and ``SGLANG_FL_OOT_BLACKLIST``.

A name in them is a layer class, which stands for its subclasses too, or an op, which stands for every
layer class that computes it.
"""

from dataclasses import dataclass

from sglang_fl.errors import SettingsError, choices, few, quoted
from sglang_fl.ops import OPS
from sglang_fl.ops.catalogue import PARTS
from sglang_fl.settings import Settings

__all__ = ["ABOVE", "LayerLists", "class_name", "layer_lists", "named_ops"]

#: Of the classes with an adapter, those that derive from another one, which a list may name instead. SGLang
#: cannot be asked before it is imported; a test compares this with what it says.
ABOVE = {
    "DeepseekScalingRotaryEmbedding": ("RotaryEmbedding",),
    "Gemma3nRMSNorm": ("RMSNorm",),
    "Glm4vRMSNorm": ("RMSNorm",),
    "MRotaryEmbedding": ("RotaryEmbedding",),
}


@dataclass(frozen=True)
class LayerLists:
    """The user's choice of layers.

    Parameters
    ----------
    white : if any, all else is left to SGLang
    black : these are left to SGLang
    title : how the user calls the list
    """

    white: frozenset[str] = frozenset()
    black: frozenset[str] = frozenset()
    title: str = ""

    def why_left_out(self, layer_class: type, op_name: str) -> str | None:
        """Say why a layer is SGLang's by the user's wish, or None where it is ours."""
        names = {op_name, *(ancestor.__name__ for ancestor in layer_class.__mro__)}
        return self._why_left_out(names) or self._why_part_left_out(op_name)

    def _why_part_left_out(self, op_name: str) -> str | None:
        """Say why an op is SGLang's that would compute a layer which is SGLang's by the user's wish."""
        parts = PARTS.get(op_name, ()) if self.black else ()
        named = sorted(name for part in parts for name in self.black & _all_names_of(part))
        return f"{self.title} names {named[0]}" if named else None

    def _why_left_out(self, names: set[str]) -> str | None:
        named = sorted(self.black & names)
        if named:
            return f"{self.title} names {named[0]}"
        if self.white and not self.white & names:
            return f"{self.title} does not name it"
        return None

    def why_op_left_out(self, op_name: str) -> str | None:
        """Say why all layer classes of an op are SGLang's, or None where one is ours."""
        if not self.white and not self.black:
            return None
        reasons = [self._why_left_out(names) for names in _names_of(op_name)]
        return self._why_part_left_out(op_name) if None in reasons else reasons[0]


def class_name(layer_class: str) -> str:
    """Return how a list calls the class of an adapter."""
    # The kernels of the gated delta rule are methods of a class: TritonGDNKernel.extend.
    return layer_class.rpartition(":")[2].partition(".")[0]


def _names_of(op_name: str) -> list[set[str]]:
    """Return for each layer class of an op the names by which a list means it."""
    from sglang_fl.sglang_adapter.layers import ADAPTERS

    adapters = (adapter for adapters in ADAPTERS.values() for adapter in adapters)
    classes = [class_name(adapter.layer_class) for adapter in adapters if adapter.op.name == op_name]
    return [{op_name, name, *ABOVE.get(name, ())} for name in classes]


def _all_names_of(op_name: str) -> set[str]:
    """Return all names by which a list means layers of an op."""
    return set().union(*_names_of(op_name))


def layer_lists(settings: Settings) -> LayerLists:
    """Check the lists against the catalogue of adapters.

    Raises
    ------
    SettingsError : a name that is neither a layer class nor an op; an order for an op (``SGLANG_FL_PER_OP``)
        all of whose layer classes are left to SGLang; one line for each
    """
    white, black = settings.oot_whitelist.names, settings.oot_blacklist.names
    active = "oot_blacklist" if black else "oot_whitelist"
    lists = LayerLists(frozenset(white), frozenset(black), settings.title(active))
    if not white and not black:  # most listings end here: the adapters import the ops, and PyTorch
        return lists
    from sglang_fl.sglang_adapter.layers import ADAPTERS

    valid = {*OPS, *map(class_name, ADAPTERS)}
    wrong = [name for name in (*white, *black) if name not in valid]
    title = f"{settings.quoted(active)}: no layer class and no op is called"
    complaints = few(wrong, lambda name: f"{title} {quoted(name)}. {choices(name, valid)}")
    for op_name in settings.per_op:
        if lists.why_op_left_out(op_name):
            complaints.append(
                f"{settings.quoted('per_op')} and {settings.quoted(active)}: the one gives an order for "
                f"{op_name}, the other leaves it to SGLang. Keep one."
            )
    if complaints:
        raise SettingsError("\n".join(complaints))
    return lists


def named_ops(settings: Settings) -> dict[str, str]:
    """Return the ops whose backend the user named, each with how: the variable, or the key in a file.

    An order for the op names it, and so does a whitelist that has it or its layer class. An order that
    begins with SGLang's own path names nothing: its faster paths are its own too. Nor does what a vendor
    package sets by default.
    """
    named = {}
    if settings.is_users("oot_whitelist"):
        listed = set(settings.oot_whitelist.names)
        for op_name in OPS:
            if any(listed & names for names in _names_of(op_name)):
                named[op_name] = settings.title("oot_whitelist")
    if settings.is_users("per_op"):
        title = settings.title("per_op")
        for op_name, order in settings.per_op.items():
            if order[0].is_sglangs:
                named.pop(op_name, None)
            else:
                named[op_name] = title
    return named
