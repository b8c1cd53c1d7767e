"""Equivalence: metrics, the three classes of checks, and what a set of checks came to."""

from fuseq.equivalence.compare import exact, fidelity, parity
from fuseq.equivalence.result import Check, CheckResult, Divergence

__all__ = ["Check", "CheckResult", "Divergence", "exact", "fidelity", "parity"]
