"""Write packages with an entry point for tests: a module and the metadata that pip would leave."""

from pathlib import Path

__all__ = ["install_module", "install_vendor"]


def install_vendor(folder: Path, name: str, source: str, *, entry: str | None = None) -> Path:
    """Write a vendor package to ``folder``, which belongs on ``PYTHONPATH``.

    Parameters
    ----------
    folder : where modules and metadata go; created if missing
    name : the entry point's name; the module is called ``<name>_vendor``
    source : the module's text; it defines ``VENDOR`` unless ``entry`` names another object
    entry : the entry point's value
    """
    module = f"{name}_vendor"
    return install_module(
        folder, module, source, "sglang_fl.vendors", f"{name} = {entry or f'{module}:VENDOR'}"
    )


def install_module(folder: Path, module: str, source: str, group: str, entry: str) -> Path:
    """Write a module with one entry point, a line such as ``name = module:object``, to ``folder``."""
    metadata = folder / f"{module}-0.0.1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.0.1\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return folder
