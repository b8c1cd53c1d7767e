"""The wheel holds every module of the three directories, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"fuseq": "fuseq", "passes": "fuseq/passes", "backends": "fuseq/backends"}


def build_wheel(symlinks: bool, out: Path) -> Path:
    """Build from a copy, so that nothing stale is found and nothing is left in the checkout."""
    source = out / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*HOMES, "docs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    if not symlinks:  # as git checks them out where links are not supported
        for name in ("passes", "backends"):
            (source / "fuseq" / name).unlink()
            (source / "fuseq" / name).write_text(f"../{name}")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module", params=[True, False], ids=["symlinks", "no-symlinks"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(request.param, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_module_and_nothing_else(wheel: Path):
    expected = {
        f"{home}/{file.relative_to(ROOT / name)}"
        for name, home in HOMES.items()
        for file in (ROOT / name).rglob("*.py")
        if not {"passes", "backends"} & set(file.relative_to(ROOT / name).parts[:1])
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fuseq/passes/fuse_affine.py" in expected
    content = {name for name in names if ".dist-info/" not in name}
    page = [file.name for file in (ROOT / "fuseq" / "report").iterdir()]
    drawn = {f"fuseq/report/{name}" for name in page if name.endswith((".css", ".html", ".js"))}
    assert drawn
    assert content == expected | drawn | {"fuseq/py.typed", "fuseq/errors.md"}


def test_wheel_holds_the_licence_and_real_entry_points(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert any(name.endswith("/licenses/LICENSE") for name in names)
        parsed = ConfigParser(delimiters="=")
        parsed.read_string(archive.read(entry_points).decode())
    assert {"console_scripts", "fuseq.passes", "fuseq.backends", "fuseq.runners"} <= set(parsed)
    for group in parsed.sections():
        for value in parsed[group].values():
            module = value.partition(":")[0].replace(".", "/")
            assert {f"{module}.py", f"{module}/__init__.py"} & set(names), value


def test_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import fuseq, fuseq.passes, fuseq.backends, pathlib;"
        "print(fuseq.__file__, fuseq.passes.__file__);"
        "from fuseq.cli import registry; print(registry.explain('FQ101').text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *manual = done.stdout.splitlines()
    assert first.count(str(tmp_path / "site")) == 2
    assert manual[0].startswith("## FQ101")
