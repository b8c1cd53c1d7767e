"""Checks as JUnit XML, which every CI system shows: one test case for each output of a candidate.

Names come from models that nobody vouches for. The XML library escapes markup; characters that XML
1.0 does not have (section 2.2) are left out before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from fuseq.cli.wording import label, numbers, place
from fuseq.equivalence.result import Check

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(checks: Mapping[str, Sequence[Check]]) -> str:
    """An XML document.

    Args:
        checks: what each check of the command, by its id, came to.
    """
    every = [check for few in checks.values() for check in few]
    root = ElementTree.Element("testsuites", {"name": "fuseq check", **_counts(every)})
    for id, few in checks.items():
        suite = ElementTree.SubElement(root, "testsuite", _clean({"name": id, **_counts(few)}))
        for check in few:
            _case(suite, id, check)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _case(suite: ElementTree.Element, id: str, check: Check) -> None:
    name = " ".join(part for part in (check.candidate, label(check)) if part)
    attributes = {"classname": id, "name": name}
    source = check.divergence.source if check.divergence else ""
    file, _, line = source.rpartition(":")
    if file:
        attributes |= {"file": file, "line": line}
    case = ElementTree.SubElement(suite, "testcase", _clean(attributes))
    if not check.passed:
        measured, allowed = numbers(check.metrics), numbers(check.gate)
        wrong = place(check)
        message = "; ".join(p for p in (wrong, f"measured {measured}; allowed {allowed}") if p)
        failure = ElementTree.SubElement(
            case, "failure", _clean({"message": message, "type": check.kind})
        )
        lines = [check.pair, f"measured {measured}", f"allowed {allowed}", wrong, check.note]
        failure.text = _NOT_XML.sub("", "\n".join(line for line in lines if line))
    elif not check.metrics:
        ElementTree.SubElement(case, "skipped", _clean({"message": check.note}))


def _counts(checks: Sequence[Check]) -> dict[str, str]:
    return {
        "tests": str(len(checks)),
        "failures": str(sum(not check.passed for check in checks)),
        "errors": "0",
        "skipped": str(sum(check.passed and not check.metrics for check in checks)),
    }


def _clean(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: _NOT_XML.sub("", value) for name, value in attributes.items()}
