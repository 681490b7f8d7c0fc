"""Two diagrams from text: a request's way through the layers, and what the packages hold."""

from collections.abc import Callable, Sequence

from docs.pictures.svg import Drawing

__all__ = ["DIAGRAMS"]


def _boxed(
    drawing: Drawing,
    corner: tuple[float, float],
    size: tuple[float, float],
    lines: Sequence[str],
    kind: str = "",
) -> None:
    """Draw a box; its first line is the title."""
    drawing.box(corner, size, kind)
    x, y = corner[0] + size[0] / 2, corner[1] + (size[1] - 15 * len(lines)) / 2 + 12
    for number, line in enumerate(lines):
        drawing.text((x, y + 15 * number), line, "small" if number else "title", "middle")


def request() -> str:
    """Return the way of a request: SGLang's layers, what is asked once, what each call runs."""
    drawing = Drawing(780, 470, "A request's way through SGLang, the plugin's layers 1 and 2, and the logs")
    drawing.text((10, 22), "A request", "title")
    for x, words in (
        (60, ("SGLang's server", "HTTP, tokenizer")),
        (250, ("scheduler", "batches, KV cache")),
    ):
        _boxed(drawing, (x, 35), (170, 44), words, "theirs")
    _boxed(drawing, (440, 35), (170, 44), ("model", "one layer after another"), "theirs")
    drawing.arrow((230, 57), (248, 57))
    drawing.arrow((420, 57), (438, 57))
    drawing.arrow((525, 79), (525, 108))
    _boxed(
        drawing,
        (410, 110),
        (230, 44),
        ("a fused layer, e.g. RMSNorm", "its forward is bound once"),
        "theirs",
    )
    drawing.text((10, 128), "Layer 2: fused ops", "title")
    drawing.text((10, 145), "one hook, at the method in which a", "small")
    drawing.text((10, 160), "layer resolves its kernel; settings,", "small")
    drawing.text((10, 175), "quarantine and contract decide once", "small")
    drawing.arrow((525, 154), (525, 183))
    for x, words in (
        (225, ("flagos", "Triton kernels")),
        (355, ("vendor", "the chip's own")),
        (485, ("reference", "plain PyTorch")),
    ):
        _boxed(drawing, (x, 185), (120, 44), words, "ours")
    _boxed(drawing, (615, 185), (155, 44), ("SGLang's own", "excluded or refused calls"), "theirs")
    for x in (285, 415, 545):
        drawing.arrow((x, 229), (x, 258))
    _boxed(drawing, (225, 260), (380, 30), ("result; after it ran: one line in the dispatch log",))
    drawing.text((10, 325), "Layer 1: ATen ops", "title")
    drawing.text((10, 342), "one library for each op, registered", "small")
    drawing.text((10, 357), "once the models are loaded", "small")
    drawing.arrow((690, 229), (690, 318))
    drawing.arrow((545, 290), (545, 318))
    _boxed(
        drawing,
        (410, 320),
        (360, 44),
        ("PyTorch's dispatcher", "mm, add, ... of the model and of references"),
        "theirs",
    )
    drawing.arrow((500, 364), (500, 393))
    drawing.arrow((690, 364), (690, 393))
    _boxed(
        drawing,
        (380, 395),
        (230, 44),
        ("the vendor's ATen kernels", "measured or named ones; record"),
        "ours",
    )
    _boxed(drawing, (625, 395), (145, 44), ("PyTorch's own", "all others"), "theirs")
    drawing.text((10, 440), "Layer 3 (communication) is not built:", "small")
    drawing.text((10, 455), "collectives are SGLang's", "small")
    drawing.text((380, 460), "blue: sglang-fl; orange: SGLang and PyTorch", "small")
    return str(drawing)


def packages() -> str:
    """Return the packages, what each holds, and who imports whom."""
    drawing = Drawing(
        780, 330, "The packages: SGLang loads core by entry points, core finds vendor packages by theirs"
    )
    _boxed(
        drawing,
        (10, 20),
        (760, 44),
        ("SGLang", "entry points sglang.srt.plugins, sglang.srt.platforms"),
        "theirs",
    )
    drawing.arrow((390, 64), (390, 93))
    drawing.box((10, 95), (760, 110), "ours")
    drawing.text((20, 113), "sglang-fl-core", "title")
    for x, words in (
        (20, ("sglang_adapter", "all that knows SGLang")),
        (208, ("dispatch, settings", "what runs, and why")),
        (396, ("bisect, compare, ...", "what is wrong")),
        (584, ("ops, vendor, ...", "public: contracts, the kit")),
    ):
        _boxed(drawing, (x, 122), (176, 44), words)
    drawing.text(
        (390, 192),
        "public modules: sglang_fl.vendor, .ops, .errors, .conformance, .platform",
        "code",
        "middle",
    )
    for x, words in (
        (10, ("sglang-fl-nvidia", "Triton kernels, sgl_kernel")),
        (203, ("sglang-fl-ascend", "torch_npu, simulated chip")),
        (396, ("sglang-fl-mlu", "platform, torch_mlu_ops")),
        (589, ("yours", "sglang-fl new-vendor")),
    ):
        drawing.arrow((x + 90, 205), (x + 90, 238))
        _boxed(drawing, (x, 240), (181, 44), words, "ours")
    drawing.text((390, 226), "entry point sglang_fl.vendors", "small", "middle")
    drawing.text(
        (10, 312),
        "A vendor package imports core's public modules and nothing else of ours. Each is released alone.",
        "small",
    )
    return str(drawing)


#: The diagrams by the names of their files.
DIAGRAMS: dict[str, Callable[[], str]] = {"request": request, "packages": packages}
