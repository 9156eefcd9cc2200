"""The project's limits on sizes: they keep every file readable in one sitting."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nestling"
FILES = sorted(SOURCE.rglob("*.py"))


def test_there_is_something_to_check():
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "files have at most 400 lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:] or body
        assert node.end_lineno is not None
        length = node.end_lineno - body[0].lineno + 1
        assert length <= 60, f"{node.name}: {length} lines of code, at most 60"
        if node.name == "__init__":
            arguments = [*node.args.args, *node.args.kwonlyargs][1:]
            assert len(arguments) <= 8, f"__init__ has {len(arguments)} arguments, at most 8"


def test_only_one_way_to_read_files():
    for path in FILES:
        text = path.read_text()
        for forbidden in ("torch.load(", "torch.save(", "import pickle", "except: pass"):
            assert forbidden not in text, f"{path}: {forbidden}"


def test_nothing_depends_on_training_mode():
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "training":
                raise AssertionError(f"{path}:{node.lineno} reads .training")


def test_test_files_have_names_of_their_own():
    # Folders of tests are no packages: two files of one name cannot both be collected.
    seen: dict[str, Path] = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        if (path.parent / "__init__.py").exists():
            continue
        assert path.name not in seen, f"{path} and {seen[path.name]} have one name"
        seen[path.name] = path
