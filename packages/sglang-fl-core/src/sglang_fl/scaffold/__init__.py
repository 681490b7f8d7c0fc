"""Write the package of a new vendor: it installs, is found, and passes the kit before a line is edited."""

from sglang_fl.scaffold.write import write_package

__all__ = ["write_package"]
