"""Rules on files that fuseq wrote: what its metadata says must be what the operators do.

DEPTH_TO_SPACE reads channels in block order (see `arrangement`), which the layer before it must
have been written for; SPACE_TO_DEPTH gives such channels to layers that must expect them. The
metadata says which constants were permuted and which values are in block order, so the order is
followed through the file and compared with what is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.graph import Graph, Operator, Tensor
from fuseq.backends.tflite.verifier.grids import LAYERS
from fuseq.backends.tflite.verifier.violation import Violation, broken

_EACH_CHANNEL_ALIKE = frozenset(
    "ADD DEQUANTIZE GELU HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MINIMUM MUL QUANTIZE RELU RELU6 "
    "SUB TANH".split()
)


def own_violations(graph: Graph) -> Iterator[Violation]:
    """Every broken rule; none for a file that somebody else wrote."""
    if not graph.metadata:
        return
    yield from _activations(graph)
    yield from _order_of_signature(graph)
    yield from _names(graph)
    yield from _block_orders(graph)


def _activations(graph: Graph) -> Iterator[Violation]:
    """A grid of 8 bits cuts what an activation cuts, so no operator has a fused one.

    Parts of a concatenation alone may be on a grid that does not.
    """
    parts = _parts_of_concatenations(graph)
    for operator in graph.operators:
        found = operator.option("fusedActivationFunction")
        own = operator.output.dtype == "int16" or operator.output.index in parts
        if found != schema.ActivationFunctionType.NONE and not own:
            yield broken(operator, operator.output, "fused activation", found, "none")


def _parts_of_concatenations(graph: Graph) -> set[int]:
    """Tensors that concatenations read, and nobody else."""
    readers: dict[int, set[str]] = {index: {"the caller"} for index in graph.outputs}
    for operator in graph.operators:
        for tensor in operator.values:
            readers.setdefault(tensor.index, set()).add(operator.code)
    return {index for index, codes in readers.items() if codes == {"CONCATENATION"}}


def _order_of_signature(graph: Graph) -> Iterator[Violation]:
    """Names that stand in another order than what they name: two of them are swapped."""
    rule = "order of the signature"
    for inputs, outputs in graph.signatures:
        sides = [
            *zip(inputs, graph.inputs, strict=False),
            *zip(outputs, graph.outputs, strict=False),
        ]
        for (name, found), needed in sides:
            if found != needed:
                tensor, own = graph.tensors[found], graph.tensors[needed].name
                yield Violation(None, "", tensor.name, tensor.value, rule, name, own)


def _names(graph: Graph) -> Iterator[Violation]:
    """Names in the metadata that no tensor has."""
    known = {tensor.name for tensor in graph.tensors}
    said = {**graph.metadata["values"], **{name: name for name in graph.metadata["constants"]}}
    for value, tensor in said.items():
        if tensor not in known:
            yield Violation(None, "", tensor, value, "metadata", "no such tensor", "one")


def _block_orders(graph: Graph) -> Iterator[Violation]:
    orders: dict[int, int] = {}
    for operator in graph.operators:
        found = {t: orders.get(t.index, 0) for t in operator.values if t.shape[-1:] != (1,)}
        common = max(found.values(), default=0)
        needed = _needed(graph, operator, common)
        for tensor, order in found.items():
            followed = operator.code not in LAYERS or tensor.content is None
            if followed and order != needed:
                yield broken(operator, tensor, "block order", order, needed)
        orders[operator.output.index] = _made(graph, operator, common)
    said = graph.metadata["block_order"]
    indices = {tensor.name: tensor.index for tensor in graph.tensors}
    for value, name in graph.metadata["values"].items():
        made, order = orders.get(indices.get(name, -1), 0), said.get(value, 0)
        if made != order:
            rule = "block order in the metadata"
            yield Violation(None, "", name, value, rule, str(order), str(made))


def _needed(graph: Graph, operator: Operator, common: int) -> int:
    """Block order that the operator expects of its operands; 0 for the order of the program."""
    if operator.code == "DEPTH_TO_SPACE":
        return int(operator.option("blockSize"))
    if operator.code in LAYERS:
        return _stored(graph, _weight(operator), "input_block")
    return common if operator.code in _EACH_CHANNEL_ALIKE else 0


def _made(graph: Graph, operator: Operator, common: int) -> int:
    """Block order of the result."""
    if operator.code == "SPACE_TO_DEPTH":
        return int(operator.option("blockSize"))
    if operator.code in LAYERS:
        return _stored(graph, _weight(operator), "output_block")
    return common if operator.code in _EACH_CHANNEL_ALIKE else 0


def _weight(operator: Operator) -> Tensor:
    weight = operator.operand(LAYERS[operator.code][1])
    assert weight is not None
    return weight


def _stored(graph: Graph, constant: Tensor, key: str) -> int:
    how = graph.metadata["constants"].get(constant.name, {})
    return int(how.get(key, 0))
