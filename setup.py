"""Packages are found, not listed, so that a new one cannot be forgotten in the wheel.

`passes/` and `backends/` import as `fuseq.passes` and `fuseq.backends`; the symlinks inside
`fuseq/` serve static tools only and are left out here.
"""

from setuptools import find_packages, setup

mapped = find_packages(include=["passes", "passes.*", "backends", "backends.*"])
links = ["fuseq.passes", "fuseq.passes.*", "fuseq.backends", "fuseq.backends.*"]

setup(
    packages=[
        *find_packages(include=["fuseq", "fuseq.*"], exclude=links),
        *(f"fuseq.{name}" for name in mapped),
    ],
    package_dir={"fuseq": "fuseq", "fuseq.passes": "passes", "fuseq.backends": "backends"},
)
