"""The runner of the manual must notice what it is there to notice."""

from pathlib import Path

import pytest

from tests.shown_blocks import Session, alike, blocks, masked, session, shown  # noqa: F401

PRINTED = ["before", "psnr 28.80", "error E", "after"]


@pytest.mark.parametrize(
    "expected",
    [
        PRINTED,
        ["...", "after"],
        ["before", "...", "error E", "after"],
        ["before", "psnr 28.95", "...", "error E", "after"],
        ["bef...", "psnr ...", "error E", "after"],
    ],
)
def test_what_was_printed(expected):
    assert shown(PRINTED, expected)


@pytest.mark.parametrize(
    "expected",
    [
        [],
        PRINTED[:-1],
        ["...", "before"],
        ["after", "...", "before"],
        ["before", "psnr 29.20", "error E", "after"],
        ["before", "psnr 28.80 28.80", "error E", "after"],
        ["..", "psnr 28.80", "error E", "after"],
    ],
)
def test_what_was_not_printed(expected):
    assert not shown(PRINTED, expected)


def test_only_decibels_have_a_tolerance():
    assert not alike("scale 28.80", "scale 28.81")
    assert masked("0.5 rounds by 3.8e-16\n\n  a   b") == ["0.5 rounds by E", "a b"]


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```console\n$ fuseq passes no-such-pass\n```\n", "fuseq passes no-such-pass: 2"),
        ("```console\n$ fuseq explain FQ101\n$ echo $?\n1\n```\n", "fuseq explain FQ101: 0"),
        ("```console\n$ ls\nnothing\n```\n", "the page shows"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the page shows"),
    ],
)
def test_a_page_that_is_wrong(session: Session, page: str, complaint: str):  # noqa: F811
    file = session.directory / "page.md"
    file.write_text(page)
    with pytest.raises(AssertionError, match=complaint):
        session.follow(file)


def test_a_page_that_is_right(session: Session):  # noqa: F811
    file = session.directory / "page.md"
    file.write_text(
        "```toml file=folder/a.toml\nx = 1\n```\n\n```console\n$ cat folder/a.toml  # as written\n"
        "x = 1\n$ fuseq passes no-such-pass\n...\n$ echo $?\n2\n```\n\n"
        "```console not-run\n$ fuseq no-such-command\n```\n"
    )
    session.follow(file)
    assert [block.run for block in blocks(file)] == [True, True, False]
    assert Path("folder/a.toml").is_file()
