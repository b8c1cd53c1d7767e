"""Rules on the file as a whole: order of its operators, names of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fuseq.backends.tflite.graph import Graph, Tensor
from fuseq.backends.tflite.verifier.violation import Violation, broken


def order_violations(graph: Graph) -> Iterator[Violation]:
    """Tensors that are read before they are written, or written twice, or never."""
    written = {*graph.inputs, *(tensor.index for tensor in graph.tensors if tensor.variable)}
    for operator in graph.operators:
        for tensor in operator.inputs:
            if tensor is not None and tensor.content is None and tensor.index not in written:
                yield broken(operator, tensor, "order", "read before it is written", "after")
        for tensor in operator.outputs:
            if tensor.index in written or tensor.content is not None:
                yield broken(operator, tensor, "order", "written twice", "once")
            written.add(tensor.index)
    for index in graph.outputs:
        if index not in written:
            yield _of_file(graph.tensors[index], "order", "an output that nothing writes", "one")
    read = {t.index for operator in graph.operators for t in operator.inputs if t is not None}
    for operator in graph.operators:
        if not {t.index for t in operator.outputs} & {*read, *graph.outputs}:
            yield broken(operator, operator.output, "order", "never read", "a reader")


def signature_violations(graph: Graph) -> Iterator[Violation]:
    """Names that do not lead to the inputs and outputs, each to its own."""
    for inputs, outputs in graph.signatures:
        yield from _side(graph, "inputs of the signature", inputs, graph.inputs)
        yield from _side(graph, "outputs of the signature", outputs, graph.outputs)


def _side(
    graph: Graph, rule: str, named: Sequence[tuple[str, int]], indices: Sequence[int]
) -> Iterator[Violation]:
    names, found = [name for name, _ in named], [index for _, index in named]
    for name, index in named:
        if index not in indices or names.count(name) > 1:
            needed = "one name each, of " + ", ".join(graph.tensors[i].name for i in indices)
            yield _of_file(graph.tensors[index], rule, f"'{name}'", needed)
    for index in indices:
        if index not in found:
            yield _of_file(graph.tensors[index], rule, "no name", "a name")


def _of_file(tensor: Tensor, rule: str, found: str, needed: str) -> Violation:
    return Violation(None, "", tensor.name, tensor.value, rule, found, needed)
