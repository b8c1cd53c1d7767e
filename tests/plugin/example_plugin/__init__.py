"""Two passes from outside: a right one, and a wrong one that fuseq must refuse."""
