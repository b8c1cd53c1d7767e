"""What every pass is held to, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import fuseq
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.rewrite import Pass, Pipeline
from fuseq.testing.assertion import require
from fuseq.testing.networks import small_networks
from fuseq.testing.plugin_rules import (
    require_described,
    require_options_refused,
    require_spelling,
)
from fuseq.testing.snapshot import snapshot

_FAULTS = {
    "FQ203": "it leaves a malformed graph",
    "FQ204": "it changes inputs or outputs",
    "FQ205": "it does not establish what it ensures",
    "FQ206": "it raises something else than a FuseqError",
    "FQ301": "it breaks its numeric promise",
}
"""Refusing a program is a pass's right; these codes are the pipeline's word against it."""


class PassContract:
    """Tests of one pass, on small networks and on yours.

    Attributes:
        pass_: what to test; data fields are filled.
        before: passes to run first, as `--passes` spells them.
        refuses: names of programs that the pass refuses, and is right to.
        rewrites: False for a pass that finds nothing to rewrite in these programs.
    """

    pass_: ClassVar[Pass]
    before: ClassVar[str] = ""
    refuses: ClassVar[frozenset[str]] = frozenset()
    rewrites: ClassVar[bool] = True

    def programs(self) -> Mapping[str, Program]:
        """Programs to test on, by name; override it to add some that the pass is for."""
        return {
            name: fuseq.capture(model, inputs) for name, (model, inputs) in small_networks().items()
        }

    def test_it_is_a_frozen_dataclass_with_a_name_a_purpose_and_a_promise(self) -> None:
        """So that it has a spelling, compares by value, and is described by `fuseq passes`."""
        require_described(self.pass_)
        kinds = fuseq.SameFunction | fuseq.Approximates | fuseq.NewFunction
        promise = self.pass_.promise
        require(isinstance(promise, kinds), f"{promise!r} is no promise of fuseq's")

    def test_it_keeps_its_promise_or_refuses(self) -> None:
        """The promise is proved on float64 twins, at two input sizes, with moved statistics."""
        rewrites, refused = 0, {}
        for name, program in self._prepared():
            try:
                rewrites += Pipeline([self.pass_]).run(program).history[-1].rewrites
            except FuseqError as error:
                require(error.code not in _FAULTS, f"{name}: {_FAULTS.get(error.code)}\n{error}")
                refused[name] = error
        for name, refusal in refused.items():
            require(
                name in self.refuses, f"{name} is refused and not named in `refuses`\n{refusal}"
            )
        missing = sorted(self.refuses - refused.keys())
        require(not missing, f"named in `refuses` and not refused: {', '.join(missing)}")
        none = "it rewrites nothing: add programs that it is for, or say rewrites = False"
        some = f"it makes {rewrites} rewrites, and says rewrites = False"
        require(bool(rewrites) == self.rewrites, none if self.rewrites else some)

    def test_it_leaves_what_it_was_given(self) -> None:
        """It edits a clone: the program, its inputs and the user's own model stay as they are."""
        for name, program in self._accepted():
            before = snapshot(program)
            Pipeline([self.pass_], prove=False).run(program)
            edited = before.difference(snapshot(program))
            require(not edited, f"{name}: it edits what it was given: {edited}")

    def test_it_is_deterministic(self) -> None:
        """Twice the same graph and, bit for bit, the same weights."""
        for name, program in self._accepted():
            first, second = (Pipeline([self.pass_], prove=False).run(program) for _ in range(2))
            other = snapshot(first).difference(snapshot(second))
            require(not other, f"{name}: run twice, it differs in {other}")

    def test_new_nodes_know_where_they_come_from(self) -> None:
        """A node without a source line cannot be named in an error or a report."""
        for name, program in self._accepted():
            known = {node.name for node in program.graph.nodes}
            result = Pipeline([self.pass_], prove=False).run(program)
            new = [node for node in result.graph.nodes if node.name not in known]
            computed = [node for node in new if node.op in ("call_module", "call_function")]
            lost = [node.name for node in computed if not result.source(node)]
            require(not lost, f"{name}: no source line on {', '.join(lost)}: copy `node.meta`")

    def test_its_spelling_gives_it_back(self) -> None:
        """`name{option=value}`, as it stands in histories, is what the command line reads."""
        require_spelling("passes", self.pass_)

    def test_unknown_options_are_refused(self) -> None:
        """With FQ012, before anything runs."""
        require_options_refused("passes", self.pass_)

    def _prepared(self) -> Iterator[tuple[str, Program]]:
        steps = parse_passes(self.before) if self.before else []
        for name, program in self.programs().items():
            yield name, Pipeline(steps, prove=False).run(program)

    def _accepted(self) -> Iterator[tuple[str, Program]]:
        return ((name, program) for name, program in self._prepared() if name not in self.refuses)
