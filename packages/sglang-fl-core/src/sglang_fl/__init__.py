"""Choose, operator by operator, which implementation SGLang runs on your chip.

Importing this package does nothing but tell its version. SGLang starts it through
``sglang_fl.plugin``; vendor packages build on ``sglang_fl.vendor``, ``sglang_fl.ops``,
``sglang_fl.errors`` and ``sglang_fl.conformance``.
"""

from sglang_fl._version import __version__

__all__ = ["__version__"]
