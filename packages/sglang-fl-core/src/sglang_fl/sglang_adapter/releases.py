"""The releases of SGLang that we support, and what differs between them.

All that depends on the release asks here, and nothing else compares versions. It is data: a new release is
one row of ``RELEASES``. Where it differs from the one before, the fact below that no longer holds gets its
last release.

The session environments of ``noxfile.py`` do not exist yet when nox reads this file, so it imports nothing of
sglang-fl, SGLang or torch.
"""

from dataclasses import dataclass

from packaging.version import Version

__all__ = [
    "CHUNKS",
    "ENCODER_DECODERS",
    "EVERY_RELEASE",
    "FORCED_BACKEND",
    "KERNEL_PLUGINS",
    "LAYER_2_SEAMS",
    "PADDED_TOKENS",
    "PIECEWISE_FLAG",
    "PLAIN_PREFILL",
    "RELEASES",
    "SPECULATION",
    "WITHOUT_TRITON",
    "Range",
    "Release",
    "is_supported",
    "newest",
    "oldest",
    "representatives",
    "seam_path",
    "supported_range",
]


@dataclass(frozen=True)
class Release:
    """A supported release of SGLang.

    Parameters
    ----------
    version : its number
    torch : the minor version of the torch that it pins
    is_representative : whether the engine's tests run on it, for the releases around it; on the newest one
        they run anyway
    """

    version: str
    torch: str
    is_representative: bool = False


#: The supported releases, oldest first.
RELEASES: tuple[Release, ...] = (
    Release("0.5.15", torch="2.11"),
    Release("0.5.16", torch="2.11"),
    Release("0.5.17", torch="2.11", is_representative=True),
    Release("0.5.18", torch="2.13"),
    Release("0.5.19", torch="2.13"),
    Release("0.5.20", torch="2.13", is_representative=True),
    Release("0.5.21", torch="2.13"),
    Release("0.5.22", torch="2.14"),
    Release("0.5.23", torch="2.14"),
)


@dataclass(frozen=True)
class Range:
    """The supported releases for which a fact holds: ``Version("0.5.20rc2") in Range(last="0.5.20")``.

    Parameters
    ----------
    first : the first of them; None: the oldest supported one
    last : the last of them; None: the newest supported one
    """

    first: str | None = None
    last: str | None = None

    def __contains__(self, version: Version) -> bool:
        """Whether the fact holds for a supported release; it never does for another one."""
        release = _release_of(version)
        return is_supported(version) and self._first <= release <= self._last

    def __str__(self) -> str:
        """Name its ends, as a sentence does: ``0.5.15 to 0.5.17``, or ``0.5.21``."""
        return f"{self._first}" if self._first == self._last else f"{self._first} to {self._last}"

    @property
    def _first(self) -> Version:
        return Version(self.first) if self.first else oldest()

    @property
    def _last(self) -> Version:
        return Version(self.last) if self.last else newest()


#: All supported releases.
EVERY_RELEASE = Range()
#: The methods in which SGLang resolves a layer's kernel. The first is asked in the layer's ``__init__``,
#: before the layer has weights or attributes, the second in its first call.
LAYER_2_SEAMS: dict[str, Range] = {
    "sglang.srt.layers.utils.multi_platform.MultiPlatformOp.dispatch_forward": Range(last="0.5.17"),
    "sglang.kernels.fused_op.BaseFusedOp._resolve_forward_method": Range(first="0.5.18"),
}
#: SGLANG_FORCE_FUSED_OP_BACKEND reaches the layers.
FORCED_BACKEND = Range(first="0.5.18")
#: A routing function may be asked for tokens that are padding; before, SGLang asserts that there are none.
PADDED_TOKENS = Range(first="0.5.17")
#: SGLang's own parser knows --disable-piecewise-cuda-graph.
PIECEWISE_FLAG = Range(last="0.5.19")
#: On a platform without Triton, a prefill launches no Triton kernel beside those of the attention backend,
#: whatever that is called; before, only where its name is torch_native or intel_amx.
PLAIN_PREFILL = Range(first="0.5.22")
#: The Triton kernels beside attention have the names and the arguments that we replace where none can run.
WITHOUT_TRITON = Range(first="0.5.23")
#: A platform is asked which worker speculates, and the functions that we replace for it have the names and
#: the arguments that we know.
SPECULATION = Range(first="0.5.23")
#: Llama 4 takes what a rotation returns where a name of its module says so, as we know it.
CHUNKS = Range(first="0.5.23")
#: Of a model with an encoder and a decoder, slots and lengths lie in a batch as we know them.
ENCODER_DECODERS = Range(first="0.5.23")
#: SGLang has ``KernelBackend.PLUGIN``, and plugins that run whole steps of a model.
KERNEL_PLUGINS = Range(first="0.5.23")


def oldest() -> Version:
    """Return the oldest supported release."""
    return Version(RELEASES[0].version)


def newest() -> Version:
    """Return the newest supported release."""
    return Version(RELEASES[-1].version)


def is_supported(version: Version) -> bool:
    """Whether layer 2 can enter an SGLang of this version."""
    return oldest() <= _release_of(version) <= newest()


def supported_range() -> str:
    """Return the supported releases as a sentence names them."""
    return str(EVERY_RELEASE)


def representatives() -> list[str]:
    """Return the releases on which the engine's tests run, oldest first; the newest is the last."""
    chosen = [release.version for release in RELEASES[:-1] if release.is_representative]
    return [*chosen, RELEASES[-1].version]


def seam_path(version: Version) -> str | None:
    """Return where layer 2 enters a supported release, or None for any other."""
    return next((path for path, releases in LAYER_2_SEAMS.items() if version in releases), None)


def _release_of(version: Version) -> Version:
    """Return the release that a version belongs to: 0.5.20.post1 and 0.5.20rc2 have the facts of 0.5.20."""
    return Version(version.base_version)
