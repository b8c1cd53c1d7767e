"""The registry: real distributions on the path, as pip would leave them."""

import pytest

from fuseq import plugins
from fuseq.errors import FuseqError


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Install a distribution that registers one pass."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, name: str, value: str, *requires: str) -> None:
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {requirement}" for requirement in requires]
        header = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0"]
        (info / "METADATA").write_text("\n".join([*header, *lines, ""]))
        (info / "entry_points.txt").write_text(f"[fuseq.passes]\n{name} = {value}\n")

    return install


def test_ours_come_through_entry_points():
    found = plugins.available("passes")
    assert list(found) == sorted(found)
    assert found["fuse-affine"].distribution == "fuseq"
    assert found["fuse-affine"].load().name == "fuse-affine"


def test_clash_names_both_distributions(register):
    register("theirs", "fuse-affine", "theirs:Pass")
    with pytest.raises(FuseqError) as caught:
        plugins.available("passes")
    assert caught.value.code == "FQ010"
    for part in ("theirs (theirs:Pass)", "fuseq (fuseq.passes.fuse_affine:FuseAffine)"):
        assert part in str(caught.value)


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(FuseqError, match="did you mean 'fuse-affine'") as caught:
        plugins.load("passes", "fuse-afine")
    assert caught.value.code == "FQ007"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module:Pass", "ModuleNotFoundError"),
        ("their_module:Missing", "AttributeError"),
        ("their_module:function", "not a class whose `name` is 'theirs'"),
        ("their_module:Misnamed", "not a class whose `name` is 'theirs'"),
        ("their_module_raises:Pass", "ZeroDivisionError"),
    ],
)
def test_broken_plugin_names_its_distribution(register, tmp_path, value, why):
    functions = "def function(): ...\nclass Misnamed:\n    name = 'other'\n"
    (tmp_path / "their_module.py").write_text(functions)
    (tmp_path / "their_module_raises.py").write_text("1 / 0\n")
    register("broken", "theirs", value)
    with pytest.raises(FuseqError) as caught:
        plugins.load("passes", "theirs")
    assert caught.value.code == "FQ011"
    assert "registered by broken 1.0" in str(caught.value)
    assert why in str(caught.value)


def test_a_plugin_whose_extra_is_not_installed_says_how_to_get_it(register):
    needs = ('sdk-of-theirs>=2; extra == "phone"', 'torch; extra == "phone"')
    elsewhere = 'other-sdk; extra == "phone" and sys_platform == "none"'
    register("theirs", "to-phone", "theirs:Pass [phone]", *needs, elsewhere, "not-asked")
    assert plugins.available("passes")["to-phone"].missing == ("sdk-of-theirs",)
    with pytest.raises(FuseqError) as caught:
        plugins.load("passes", "to-phone")
    assert caught.value.code == "FQ502"
    assert "needs sdk-of-theirs" in caught.value.what
    assert caught.value.fix == "pip install 'theirs[phone]'"


def test_tflite_asks_for_its_extra():
    for kind in ("backends", "runners"):
        assert plugins.available(kind)["tflite"].extras == ("tflite",)
