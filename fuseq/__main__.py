"""`python -m fuseq`: the command line."""

import sys

from fuseq.cli import main

if __name__ == "__main__":
    sys.exit(main())
