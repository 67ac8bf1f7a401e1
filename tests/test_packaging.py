"""What `pip install` puts on a machine."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import querylift
from tests.helpers.paths import ROOT

PACKAGES = ("index_tools", "models", "plugin", "quantize", "trainer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the files that git knows, built where nothing of an earlier build lies."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    copy = ["tar", "--create", "--directory", str(ROOT), "--null", "--files-from=-"]
    archive = subprocess.run(copy, input=listed, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", "--directory", str(source)], input=archive, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(out), str(source)], check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_one_package_is_installed_and_no_module_of_another_name(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {"querylift", f"querylift-{querylift.__version__}.dist-info"}
    below = {name.split("/")[1] for name in wheel.namelist() if name.startswith("querylift/")}
    assert below == {"__init__.py", "__main__.py", "py.typed", *PACKAGES}


def test_the_wheel_has_every_module_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    modules = {f"querylift/{path.relative_to(ROOT)}" for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_the_wheel_has_the_files_that_are_no_modules(wheel: zipfile.ZipFile) -> None:
    others = sorted(name for name in wheel.namelist() if name.startswith("querylift/") and not name.endswith(".py"))
    assert [re.sub(r"^querylift/", "", name) for name in others if "/configs/" not in name] == [
        "index_tools/corpora/builtin_data/README.md",
        "index_tools/corpora/builtin_data/qrels.tsv",
        "index_tools/corpora/builtin_data/queries.jsonl",
        "index_tools/evaluation/report.html.jinja",
        "models/README.md",
        "models/smollm2-135m-querylift.gguf",
        "py.typed",
        "trainer/results/results.html.jinja",
    ]
    configs = {Path(name).name for name in others if "/configs/" in name}
    assert configs == {path.name for path in (ROOT / "trainer/configs").rglob("*.toml")}


def test_the_version_is_the_newest_one_of_the_changelog() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert headings[0] == querylift.__version__


def test_python_m_querylift_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "querylift", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"querylift, version {querylift.__version__}\n"
