"""Write the tables of the pages about benchmarks alone: ``python -m release.figures [--check]``."""

import sys

from release.figures import pages
from release.marks import renew

if __name__ == "__main__":
    raise SystemExit(renew(pages(), is_check=sys.argv[1:] == ["--check"]))
