"""Built-in passes: one pass, one file. They register through entry points like anybody's."""

if __name__ != "fuseq.passes":
    raise ImportError("import fuseq.passes: a second copy under this name would register twice")
