"""Assertions and contracts for tests of your own; pytest finds them, and nothing here imports it.

    from fuseq.testing import BackendContract, PassContract, assert_equivalent

    class TestMyPass(PassContract):
        pass_ = MyPass()

A contract is a class whose methods are tests. A subclass says what to test, and inherits them all.
"""

from __future__ import annotations

from fuseq.testing.assertion import assert_equivalent
from fuseq.testing.backend_contract import BackendContract
from fuseq.testing.networks import small_networks
from fuseq.testing.pass_contract import PassContract

__all__ = ["BackendContract", "PassContract", "assert_equivalent", "small_networks"]
