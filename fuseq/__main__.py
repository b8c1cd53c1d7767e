"""`python -m fuseq`: the command line."""

from fuseq.cli import main

if __name__ == "__main__":
    main()
