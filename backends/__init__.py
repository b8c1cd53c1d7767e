"""Built-in backends: one target, one file. They register through entry points like anybody's."""

if __name__ != "fuseq.backends":
    raise ImportError("import fuseq.backends: a second copy under this name would register twice")
