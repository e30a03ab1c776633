"""What must not stand in the source at all, whoever calls it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted([*(PROJECT / "faithad").rglob("*.py"), *(PROJECT / "jobs").glob("*.py")])

# Modules that unpickle, or run what they are given; of `pickle` only the names of its errors are used.
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "pty", "runpy"}
# Calls by their last two names, or by the last alone.
CALLS = {
    *("eval", "exec", "__import__", "builtins.compile", "os.system", "os.popen", "np.load", "numpy.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("pd.read_pickle", "pandas.read_pickle", "pickle.load", "pickle.loads", "pickle.Unpickler", "Tuner.restore"),
    *("Trainer.restore", "joblib.load", "ArrowPythonObjectType"),
}
OPTIONS = {"shell": True, "allow_pickle": True, "weights_only": False}


def complaints(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if MODULES & set(name.split(".")))
        if isinstance(node, ast.Attribute | ast.Name):
            name = ast.unparse(node)
            if ".".join(name.split(".")[-2:]) in CALLS:
                yield name
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            for option, value in given.items():
                if option in OPTIONS and not (isinstance(value, ast.Constant) and value.value is not OPTIONS[option]):
                    yield f"{option}={ast.unparse(value)}"
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in given:
                yield "torch.load without weights_only=True"


@pytest.mark.parametrize(
    "source",
    [
        "import joblib",
        "from ray import cloudpickle",
        "import ray.cloudpickle as pickle",
        "import pickle; pickle.loads(content)",
        "torch.load(file)",
        "torch.load(file, weights_only=trusted)",
        "np.load(file)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "tune.Tuner.restore(path, trainable)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
        "load = pickle.loads",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(complaints(source))


def test_nothing_that_is_read_can_be_run() -> None:
    assert len(SOURCES) > 50
    found = {str(file.relative_to(PROJECT)): list(complaints(file.read_text())) for file in SOURCES}
    assert {file: told for file, told in found.items() if told} == {}


# An audit's page runs the files of this package that `page.write` is given, and reads its data as JSON.
SCRIPTS = {
    "audit.html.j2": '<script type="application/json" id="data">{{ data | tojson }}</script>',
    "page.html.j2": "{% for script in scripts %}\n<script>{{ script }}</script>",
}


def test_only_our_own_pictures_and_scripts_are_markup() -> None:
    """Everything else goes through the escaping of the templates."""
    makers = [file.name for file in SOURCES if "Markup(" in file.read_text()]
    assert makers == ["page.py", "style.py"]
    templates = list((PROJECT / "faithad" / "report").glob("*.j2"))
    assert len(templates) >= 5
    for template in templates:
        text = template.read_text()
        if (script := SCRIPTS.get(template.name)) is not None:
            assert script in text
            text = text.replace(script, "")
        for hole in ("|safe", "| safe", "autoescape", "<script", "javascript:", " onclick", " onload"):
            assert hole not in text, template.name
