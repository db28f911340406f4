"""Rules about the repository itself: who imports whom, how long a file is, what a name may be."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("coordinator", "participant", "model", "kernels", "privacy", "sims")
MAX_LINES = 400
BANNED_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "manager.py"}
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
# `app` is what Flower bundles: a manifest and no code.
OPEN_TO_PARTICIPANTS = {"coordinator.wire", "coordinator.app"}
# Folders of one machine or of whoever wrote the code; documents may name a user's own paths.
WORKPLACE = re.compile(r"/work/|/root/|/home/|/Users/")


def modules():
    """Every hand-written module of our packages."""
    return [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not GENERATED.search(path.name)
    ]


def sources():
    """Every hand-written Python file, tests included."""
    return modules() + sorted((ROOT / "tests").rglob("*.py"))


def shown(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_nobody_imports_what_the_layers_forbid():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_linter_sees_every_package_of_ours(project):
    assert set(project["tool"]["importlinter"]["root_packages"]) == set(PACKAGES)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)


def test_participants_see_nothing_of_the_coordinator_but_the_wire(project):
    contracts = project["tool"]["importlinter"]["contracts"]
    (wire,) = [contract for contract in contracts if contract["name"].startswith("wire")]
    parts = {
        f"coordinator.{path.stem}"
        for path in (ROOT / "coordinator").iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert set(wire["protected_modules"]) == parts - OPEN_TO_PARTICIPANTS
    assert set(wire["allowed_importers"]) == {"coordinator", "sims"}


@pytest.mark.parametrize("path", sources(), ids=shown)
def test_a_file_is_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_a_file_is_named_for_what_it_holds():
    assert [shown(path) for path in sources() if path.name in BANNED_NAMES] == []


def test_every_module_says_what_it_is_for():
    silent = [
        shown(path)
        for path in modules()
        if (text := path.read_text(encoding="utf-8")).strip()
        and ast.get_docstring(ast.parse(text)) is None
    ]
    assert silent == []


def test_every_package_has_an_init_that_imports_nothing_by_the_way():
    folders = {path.parent for path in modules()} - {ROOT / "coordinator" / "app"}
    assert [shown(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_functions_fit_a_screen():
    long = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60 and "migrations" not in path.parts:
                    long.append(f"{shown(path)}: {node.name} has {lines} lines")
    assert long == []


def test_no_other_distribution_claims_a_name_of_ours():
    claims = packages_distributions()
    strangers = {name: set(claims.get(name, [])) - {"concord"} for name in PACKAGES}
    assert {name: found for name, found in strangers.items() if found} == {}


def test_no_name_of_ours_is_the_standard_library_s():
    assert set(PACKAGES).isdisjoint(sys.stdlib_module_names)


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join(code_of(readme))))
    assert {"demo", "test"} <= named
    assert named <= targets


def code_of(text):
    """What stands in fences and backticks of a document."""
    return re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)


def test_every_command_of_the_readme_is_installed(project):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = set(project["project"]["scripts"])
    assert scripts == {"coordinator", "participant", "sims"}
    assert all(re.search(rf"\b{script} [a-z]", "\n".join(code_of(readme))) for script in scripts)


def test_no_text_names_the_folders_of_one_machine():
    texts = [*modules(), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    texts += [ROOT / "Makefile", *(ROOT / "sims").rglob("*.toml")]
    found = [shown(path) for path in texts if WORKPLACE.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_every_dependency_is_pinned_and_explained():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    pins = [line.strip() for line in lines if re.match(r'\s+"[a-z0-9-]+(\[[a-z]+\])?==', line)]
    assert len(pins) > 20
    assert [pin for pin in pins if "#" not in pin] == []


def test_every_dependency_is_pinned_to_one_version(project):
    asked = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    assert [
        item for item in asked if not re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9.]+", item)
    ] == []


MEASURING = ("sims/attacks/secure_sum/", "sims/benchmarks/")
"""Where Flower's own secure sums are attacked and timed."""


def test_flower_s_private_api_stays_where_it_meets_ours_or_is_measured():
    private = re.compile(
        r"^\s*(from|import) flwr\.(supercore|superlink|supernode|proto|common)", re.MULTILINE
    )
    found = {shown(path) for path in modules() if private.search(path.read_text(encoding="utf-8"))}
    product = {"participant/executor.py", "sims/grid.py"}
    assert {name for name in found - product if not name.startswith(MEASURING)} == set()
