"""The house rules that a parser can see: one-way imports, one place a capability, nothing unsafe, nothing heavy.

Each rule is a function of one parsed file that yields (line, complaint); `test_rules_bite` shows it what it forbids.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("features", "extract", "heads", "pipelines", "framepool")
HEAVY = ("torch", "torchvision", "timm", "openvino", "zarr")
MAX_LINES = 400
Rule = Callable[[str, ast.Module], Iterator[tuple[int, str]]]


def sources() -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every dotted name that the file imports: ``from extract import networks`` is ``extract.networks``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name that it is made by; ``?.rename`` where the object has no name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, function = [], node.func
            while isinstance(function, ast.Attribute):
                parts.append(function.attr)
                function = function.value
            parts.append(function.id if isinstance(function, ast.Name) else "?")
            yield node, ".".join(reversed(parts))


def option(call: ast.Call, name: str) -> object:
    """The constant given as keyword `name`; None where it is not given, ... where it is no constant."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value if value is None else getattr(value, "value", ...)


def one_way_imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    room = path.split("/", maxsplit=1)[0]
    may = {
        "features": ["features"],
        "extract": ["features", "extract"],
        "heads": ["features", "heads", "extract.networks"],
    }
    allowed = ["extract.networks"] if path.startswith("extract/networks/") else may.get(room, list(ROOMS))
    for line, name in imported(tree):
        if name.split(".")[0] in ROOMS and not any(f"{name}.".startswith(f"{a}.") for a in allowed):
            yield line, f"{room} may not import {name}"


def torch_stays_out_of_features(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, name in imported(tree):
        if (
            path.startswith("features/")
            and path not in ("features/batches.py", "features/stream.py")
            and name.split(".")[0] == "torch"
        ):
            yield line, "in features, only batches.py and stream.py know torch"


def one_module_renames(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in calls(tree):
        method = name.split(".")[-1]
        renames = (
            name in ("os.rename", "os.renames", "os.replace", "os.fsync", "os.fdatasync", "shutil.move")
            or (method == "rename" and not name.startswith("Disk."))
            or (
                method == "replace" and len(call.args) == 1 and not call.keywords
            )  # Path.replace; that of str takes two
        )
        if renames and path != "features/atomic.py":
            yield call.lineno, f"{name}: only features/atomic.py renames and fsyncs"


def one_module_opens_media(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in calls(tree):
        writes = option(call, "mode") == "w" and path.startswith("pipelines/datasets/")
        if name in ("av.open", "av.container.open", "cv2.VideoCapture") and path != "extract/media.py" and not writes:
            yield call.lineno, f"{name}: only extract/media.py opens media"


def one_core_of_openvino(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in calls(tree):
        if name.split(".")[-1] == "Core" and path != "extract/openvino_core.py":
            yield call.lineno, f"{name}: a second core makes a signal a segmentation fault, so use CORE"


def nothing_unsafe(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    unsafe_modules = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
    yield from (
        (line, f"{name} runs what it reads") for line, name in imported(tree) if name.split(".")[0] in unsafe_modules
    )
    for call, name in calls(tree):
        last = name.split(".")[-1]
        if name in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "yaml.load",
            "torch.jit.load",
            "torch.hub.load",
        ):
            yield call.lineno, f"{name} runs what it reads"
        if option(call, "shell") not in (None, False):
            yield call.lineno, "shell=True"
        if option(call, "allow_pickle") not in (None, False):
            yield call.lineno, "allow_pickle=True"
        if name == "torch.load" and option(call, "weights_only") is not True:
            yield call.lineno, "torch.load without weights_only=True"
        if last == "extractall" and option(call, "filter") is None:
            yield call.lineno, "extractall without a filter"
        if name.startswith("zarr.open") and option(call, "mode") not in ("r", "w", "w-"):
            yield call.lineno, f"{name}: a published shard is read or made whole, so mode is 'r' or 'w'"


def no_assert(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    yield from (
        (n.lineno, "assert is gone under python -O: raise an error")
        for n in ast.walk(tree)
        if isinstance(n, ast.Assert)
    )


def says_what_it_is(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(tree):
        yield 1, "a module opens with what it is"


RULES: dict[Rule, dict[str, str]] = {  # each with files that it must complain about
    one_way_imports: {
        "features/a.py": "import heads",
        "features/b.py": "from extract.media import probe",
        "extract/a.py": "from heads.base import Head",
        "extract/networks/a.py": "from features.recipe import Config",
        "heads/a.py": "from extract import media",
        "heads/b.py": "def f():\n    import pipelines.config",
    },
    torch_stays_out_of_features: {"features/store.py": "from torch import nn"},
    one_module_renames: {
        "heads/a.py": "path.replace(other)",
        "extract/a.py": "shutil.move(a, b)",
        "pipelines/a.py": "(a / b).rename(c)",
    },
    one_module_opens_media: {"heads/a.py": "av.open(path)", "pipelines/datasets/a.py": "av.open(path, mode='r')"},
    one_core_of_openvino: {"pipelines/a.py": "core = openvino.Core()", "extract/a.py": "ov.runtime.Core()"},
    nothing_unsafe: {
        "heads/a.py": "import pickle",
        "heads/b.py": "subprocess.run(c, shell=True)",
        "heads/c.py": "torch.load(path)",
        "heads/d.py": "np.load(path, allow_pickle=True)",
        "heads/e.py": "tarfile.open(p).extractall(q)",
        "heads/f.py": "zarr.open_group(path)",
        "heads/g.py": "yaml.load(text)",
        "heads/h.py": "eval(text)",
    },
    no_assert: {"heads/a.py": "assert x"},
    says_what_it_is: {"heads/a.py": "x = 1"},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule: Rule) -> None:
    trees = {path: ast.parse((ROOT / path).read_text()) for path in sources()}
    assert [f"{path}:{line}: {what}" for path, tree in trees.items() for line, what in rule(path, tree)] == []


@pytest.mark.parametrize(
    ("rule", "path", "text"), [(r, path, text) for r, bad in RULES.items() for path, text in bad.items()]
)
def test_rules_bite(rule: Rule, path: str, text: str) -> None:
    assert list(rule(path, ast.parse(text)))


def test_rules_let_pass_what_is_fine() -> None:
    fine = (
        '"""Fine."""\nimport torch\nfrom extract.networks import build\nmodel.eval()\ntext.replace("a", "b")\n'
        'zarr.open_group(p, mode="r")\ntime.replace(tzinfo=None)\ntorch.load(p, weights_only=True)\nre.compile(p)\n'
    )
    assert [c for rule in RULES for c in rule("heads/fine.py", ast.parse(fine))] == []


def test_torch_load_stands_in_two_places_at_most() -> None:
    places = [p for p in sources() for _, name in calls(ast.parse((ROOT / p).read_text())) if name == "torch.load"]
    assert len(places) <= 2, places


def test_files_stay_short() -> None:
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {path: n for path, n in lines.items() if n > MAX_LINES} == {}


def light_modules() -> list[str]:
    names = [path.removesuffix(".py").replace("/", ".") for path in sources()]
    light = [
        n.removesuffix(".__init__")
        for n in names
        if n.split(".")[-1] == "config" or n in {f"{r}.__init__" for r in ROOMS}
    ]
    return light + [n for n in ("pipelines.plan", "pipelines.datasets.demo") if n in names]


def test_parsing_imports_nothing_heavy() -> None:
    """The Snakefile parses with these: a torch in one of them costs every `snakemake` seconds."""
    code = f"import {', '.join(light_modules())}, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def texts() -> list[Path]:
    """What a checkout holds and a person wrote."""
    folders = [*ROOMS, "tests", "benchmarks", "docs", "config", "profiles", ".ci"]
    kinds = {".py", ".smk", ".md", ".yaml", ".toml", ".html", ".css", ".csv", ".json", ".sh", ""}
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix in kinds]
    names = (
        "Makefile",
        "Snakefile",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "pyproject.toml",
        "requirements.lock",
    )
    return [p for p in files if "__pycache__" not in p.parts] + [ROOT / n for n in names if (ROOT / n).exists()]


def test_nothing_names_the_machine_it_was_written_on() -> None:
    """No absolute home or workspace, no package index, no address of a machine."""
    pattern = re.compile(
        r"(?<![\w.>}\])*~-])/(?:root|work|home|opt|mnt|Users)/|--(?:extra-)?index-url|--find-links|file://|localhost"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in texts()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert found == []


def test_no_large_binaries() -> None:
    folders = [ROOT / name for name in (*ROOMS, "tests", "benchmarks", "docs", "config", "profiles")]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(ROOT)): p.stat().st_size for p in files if p.stat().st_size > 50_000} == {}


def test_the_lock_names_an_exact_version_of_all_that_is_needed() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.!]+(?: ; [\w ]+ == \"\w+\")?", line)] == []
    locked = {line.split("==")[0] for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    block = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    needed = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)(?:\[\w+\])?>=', block)}
    assert len(needed) > 20
    assert needed - locked == set()
