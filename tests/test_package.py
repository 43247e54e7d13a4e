"""The package: what is imported from where, what it exports, and what travels with it."""

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

import alexnet_lib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "alexnet_lib"

# From the ground up: a module may import its own folder and those before it.
FLOORS = (
    ("checks", "devices", "files", "interrupts", "text"),
    ("kernels",),
    ("data",),
    ("network",),
    ("interop",),
    ("training",),
    ("inference",),
    ("analysis",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``alexnet_lib``."""
    files = (file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in files}


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The package's modules that statements import, without the examples of docstrings.

    The package itself, whose names are loaded from all of them, is an empty string.
    """
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            base, _, below = node.module.partition(".")
            if base == "alexnet_lib":
                for alias in node.names:
                    path = ".".join(filter(None, (below, alias.name)))
                    yield path if path in modules() else below
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, _, below = alias.name.partition(".")
                if package == "alexnet_lib":
                    yield below


ALL_IMPORTS = {name: set(imports_of(ast.walk(tree_of(file)))) for name, file in modules().items()}
IMPORTS = {name: imported - {""} for name, imported in ALL_IMPORTS.items()}


def floor_of(module: str) -> int:
    return FLOOR_OF[module.partition(".")[0]]


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_run_downwards(module):
    for imported in IMPORTS[module]:
        assert imported in IMPORTS, f"{module} imports {imported!r}, which is not a module"
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}"


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert {name.partition(".")[0] for name in IMPORTS} == set(FLOOR_OF)


def test_no_module_imports_itself_through_others():
    assert len([*TopologicalSorter(IMPORTS).static_order()]) == len(IMPORTS)


def test_only_the_command_line_imports_the_package_itself():
    # And what looks its version up.
    assert {name for name, imported in ALL_IMPORTS.items() if "" in imported} <= {"cli", "devices"}


def test_nothing_imports_the_command_line_but_the_program():
    assert {name for name, imported in IMPORTS.items() if "cli" in imported} == {"__main__"}


@pytest.mark.parametrize("module", ["kernels.gpu", "data.cifar10"])
def test_what_loads_triton_or_torchvision_is_imported_inside_functions(module):
    assert any(module in imported for imported in IMPORTS.values())
    for name, file in modules().items():
        assert module not in set(imports_of(tree_of(file).body)), name


def test_the_network_knows_nothing_of_data_but_the_preprocessing():
    imported = set().union(
        *(names for name, names in IMPORTS.items() if name.startswith("network"))
    )
    assert {name for name in imported if name.startswith("data")} == {"data.preprocess"}


def test_nothing_below_the_runs_of_several_processes_asks_which_one_it_is():
    for name, file in modules().items():
        if name.startswith(("data.", "network.")) or name == "training.loop":
            nodes = ast.walk(tree_of(file))
            attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            assert not attributes & {"rank", "get_rank", "is_first"}, name


def test_the_tests_lie_in_the_folders_of_what_they_test():
    folders = {name for name in FLOOR_OF if (PACKAGE / name).is_dir()}
    tested = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert tested == folders


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The names in the wheel, and those in the source distribution below its folder."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        wheel_names = set(archive.namelist())
    with tarfile.open(source) as archive:
        return wheel_names, {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_holds_the_files_of_the_package_and_no_others(built):
    expected = {
        file.relative_to(ROOT / "src").as_posix()
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"alexnet_lib/kernels/cpu.c", "alexnet_lib/py.typed"} <= expected
    assert {name for name in built[0] if ".dist-info/" not in name} == expected
    assert {f"src/{name}" for name in expected} <= built[1]


def test_the_source_distribution_holds_what_its_makefile_and_its_readme_name(built):
    names = built[1]
    assert {"Makefile", "CITATION.cff", "CHANGELOG.md", "LICENSE"} <= names
    makefile, readme = ((ROOT / name).read_text("utf-8") for name in ("Makefile", "README.md"))
    scripts = set(re.findall(r"\b[a-z]+(?:/[a-z_]+)+\.py\b", makefile))
    assert scripts >= {"fuzz/fuzz.py", "benchmarks/bench.py"}
    assert scripts <= names
    linked = set(re.findall(r"\]\(([a-z_/]+\.[a-z]+)\)", readme))
    assert linked >= {"docs/quickstart.md"}
    assert linked <= names
    for folder in {"examples", "fuzz"} & {path.name for path in ROOT.iterdir()}:
        files = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.ipynb")]
        assert {file.relative_to(ROOT).as_posix() for file in files} <= names


def test_the_citation_is_of_this_package_and_of_the_paper():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["title"] == f"{project['name']}: {project['description']}"
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    cited = ", ".join(author["family-names"] for author in paper["authors"])
    line = f"{cited}, *{paper['title']}*, NIPS {paper['year']}."
    assert line in " ".join((ROOT / "README.md").read_text("utf-8").split())


def modules_loaded_by(code):
    code += "\nimport sys\nprint()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "torchvision", "numpy", "PIL", "jaxtyping", "safetensors", "tqdm"}


def test_the_package_loads_nothing_until_a_name_is_asked_for():
    loaded = modules_loaded_by("import alexnet_lib")
    assert {name for name in loaded if name.startswith("alexnet_lib")} == {"alexnet_lib"}
    assert not HEAVY & loaded


def test_the_tables_are_loaded_without_torch():
    loaded = modules_loaded_by("from alexnet_lib import summary; summary('paper')")
    assert "alexnet_lib.network.architecture" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["download", "cifar10", "--help"], ["summary"]]
)
def test_the_command_line_loads_no_torch_to_help(arguments):
    loaded = modules_loaded_by(
        "import sys; from alexnet_lib.cli import main\n"
        f"sys.argv = ['alexnet-lib', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 0"
    )
    assert "alexnet_lib.cli" in loaded
    assert not HEAVY & loaded


def test_alexnet_is_loaded_and_built_without_torchvision():
    loaded = modules_loaded_by(
        "import torch; from alexnet_lib import AlexNet\nwith torch.device('meta'): AlexNet()"
    )
    assert "alexnet_lib.network.model" in loaded
    assert "torchvision" not in loaded


def names_imported_for_type_checkers():
    """name -> module of the imports under `if TYPE_CHECKING` in the package."""
    tree = tree_of(Path(alexnet_lib.__file__))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {alias.name: statement.module for statement in block.body for alias in statement.names}


def test_type_checkers_see_exactly_the_public_names():
    assert sorted(names_imported_for_type_checkers()) == alexnet_lib.__all__


@pytest.mark.parametrize(("name", "module"), [*names_imported_for_type_checkers().items()])
def test_a_public_name_is_loaded_from_where_type_checkers_see_it(name, module):
    assert getattr(alexnet_lib, name) is getattr(importlib.import_module(module), name)
    assert name in dir(alexnet_lib)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'alexnet_lib' has no attribute 'LeNet'"):
        _ = alexnet_lib.LeNet
