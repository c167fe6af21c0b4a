"The repository itself: everything that is made from something else is up to date, and the house rules hold."
import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((HOME / "nbs").glob("*.ipynb"))
MODULES = sorted(p for p in (HOME / "mellm").glob("*.py") if not p.name.startswith("_"))
# The floors of the house, from the ground up: a module imports only from modules that stand before it.
FLOORS = ("study plots aucode facs labels faces anatomy portrait motion capture layouts synth sheets folders codes rows apex megc corpora protocols data meflow flow flowbench flowchecks flowtrain measures styles batch colormap throughput mirror words answers "
          "chinese instructions formats rewrite nano pictures pretrain bases tiny sampling finetune scale predict explainer push metrics compare vqascores baselines samples descriptors networks methods folds endpoints models serving zeroshot eval strategies "
          "transfer motionllm real crosscorpus findclips challenge pairs analysis cli tools evaluate").split()
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work|tmp|var/folders)/[\w.~-]|(?<![\w.])/root\b|[A-Z]:\\\\Users\\\\")


def settings():
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(HOME / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def python(*args, cwd=HOME, **env):
    "Run the interpreter of the tests; the finished process, which must have succeeded."
    env = {key: value for key, value in os.environ.items() if not key.startswith("MELLM_")} | env
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


BUILT = {".venv", "runs", ".git", "__pycache__", ".hypothesis", ".pytest_cache", "mellm.egg-info", "_proc", "_docs", "build", "dist"}


def tracked():
    "The files of the project: what git tracks or would track, else all but what is built."
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=HOME, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout: files = [HOME / name for name in done.stdout.split("\0") if name]
    else: files = [p for p in HOME.rglob("*") if not BUILT & set(p.relative_to(HOME).parts)]
    return [p for p in files if p.is_file()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev works on, to be changed at will."
    folder = tmp_path_factory.mktemp("copy") / "mellm"
    for name in ("nbs", "mellm"):
        shutil.copytree(HOME / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "weights", ".ipynb_checkpoints"))
    for name in ("settings.ini", "_quarto.yml"): shutil.copy(HOME / name, folder / name)
    return folder


# What is made from something else

def test_export_is_fresh(copy):
    for module in (copy / "mellm").glob("*.py"):
        if module.name != "__init__.py": module.unlink()
    python("-c", "from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()", cwd=copy)
    made, kept = ({p.name: p.read_text() for p in folder.glob("*.py")} for folder in (copy / "mellm", HOME / "mellm"))
    assert set(made) == set(kept), "a module without a notebook, or a notebook that was never exported: run `make export`"
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, f"{stale} differ from what the notebooks export: run `make export`"


def test_readme_is_made_from_the_index():
    python(".ci/readme.py", "--check")


def test_version_is_the_one_of_settings():
    import mellm
    assert mellm.__version__ == settings()["version"]


def test_site_has_one_configuration_and_lists_every_notebook_in_order():
    import yaml
    link = HOME / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == HOME / "_quarto.yml", "nbs/_quarto.yml must be a link, not a second copy"
    contents = yaml.safe_load((HOME / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    listed = [name for entry in contents for name in ([entry] if isinstance(entry, str) else entry["contents"])]
    assert listed[0] == "index.ipynb"
    assert listed[1:] == [p.name for p in NOTEBOOKS if p.name != "index.ipynb"]


def test_workflows_are_valid_and_cover_the_supported_pythons():
    import yaml
    jobs = {p.name: yaml.safe_load(p.read_text())["jobs"] for p in (HOME / ".github" / "workflows").glob("*.yaml")}
    assert set(jobs) == {"test.yaml", "deploy.yaml"}
    first, last = (int(settings()[key].split(".")[1]) for key in ("min_python", "max_python"))
    assert jobs["test.yaml"]["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(first, last)]


def test_constraints_pin_every_requirement_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    pins = {}
    for line in (HOME / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"): continue
        pin = Requirement(line)
        (exact,) = pin.specifier
        assert exact.operator == "==" and "+" not in exact.version, f"{line} is no plain exact pin"
        pins[canonicalize_name(pin.name)] = exact.version
    cfg = settings()
    wanted = [Requirement(text) for key in ["requirements", *(f"{e}_requirements" for e in cfg["extras"].split())] for text in cfg[key].split()]
    assert len(wanted) > 20
    for requirement in wanted:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


# Notebooks

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_fit_to_publish(path):
    assert path.stat().st_size < 4_000_000, "over 4 MB: smaller pictures, shorter animations"
    nb = json.loads(path.read_text(encoding="utf-8"))
    first = "".join(nb["cells"][0]["source"])
    assert nb["cells"][0]["cell_type"] == "markdown" and re.match(r"# .+\n+> .+", first), "begins with a title and one sentence"
    for i, cell in enumerate(nb["cells"], start=1):
        errors = [o for o in cell.get("outputs", []) if o["output_type"] == "error"]
        assert not errors, f"cell {i} ends in an error"
        seen = "".join(cell["source"]) + json.dumps([o.get("text", o.get("data", {}).get("text/plain", "")) for o in cell.get("outputs", [])])
        seen += json.dumps([o.get("data", {}).get(kind, "") for o in cell.get("outputs", []) for kind in ("text/html", "text/markdown")])
        found = MACHINE_PATH.search(re.sub(r"base64,[A-Za-z0-9+/=\\n]+", "", seen))
        assert not found, f"cell {i} names a place on one machine: {seen[max(0, found.start() - 30):found.end() + 30]!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_mostly_taught(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    prose = sum(cell["cell_type"] == "markdown" for cell in nb["cells"]) / len(nb["cells"])
    assert prose >= 0.35, f"{prose:.0%} of the cells are prose"
    for i, cell in enumerate(nb["cells"], start=1):
        source = "".join(cell["source"])
        if not re.match(r"#\|\s*export\b", source): continue
        assert len(source.splitlines()) <= 50, f"exported cell {i} has {len(source.splitlines())} lines: split it"


def test_notebooks_are_clean(copy):
    before = {p.name: p.read_bytes() for p in (copy / "nbs").glob("*.ipynb")}
    python("-c", "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()", cwd=copy)
    unclean = [name for name, text in before.items() if (copy / "nbs" / name).read_bytes() != text]
    assert not unclean, f"{unclean} carry metadata: run `make export`"


def test_the_six_stages_are_there():
    numbered = [p.stem for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
    assert numbered == ["00_data", "01_flow_colormap", "02_instructions", "03_finetune", "04_eval", "05_analysis"]


# Files

def test_no_machine_path_and_no_pickle_in_any_file():
    found = []
    for path in tracked():
        if path.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".npy"): found.append(f"{path}: a pickled or opaque file")
        if path.suffix not in (".py", ".md", ".toml", ".ini", ".txt", ".yml", ".yaml", ".css", ".json", ".jinja", "") or path == Path(__file__): continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line): found.append(f"{path.relative_to(HOME)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_module_unpickles(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bimport pickle|\bpickle\.|\bjoblib\.(dump|load)|allow_pickle=True", text)
    assert all("weights_only=True" in line for line in re.findall(r"torch\.load\(.*", text)), "torch.load reads pickles unless weights_only=True"


def test_package_data_is_installed_with_the_package():
    from setuptools import Distribution
    from setuptools.command.build_py import build_py
    weights = [p for p in (HOME / "mellm").rglob("*") if p.suffix in (".safetensors", ".json", ".jinja", ".txt")]
    command = build_py(Distribution({"packages": ["mellm"], "package_data": {"mellm": settings()["package_data"].split()}}))
    here = os.getcwd()
    try:
        os.chdir(HOME)
        command.finalize_options()
        shipped = {Path(folder, name).resolve() for _, folder, _, names in command.data_files for name in names}
    finally: os.chdir(here)
    assert {p.resolve() for p in weights} <= {HOME / p for p in shipped}
    assert sum(p.stat().st_size for p in weights) <= 16 * 2**20, "the embedded model must stay within 16 MB"


# Imports

def imports(path):
    "Modules of mellm that a module imports, at its top or inside a function."
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").split(".")[0] == "mellm"):
            inner = (node.module or "") if node.level else (node.module or "").partition(".")[2]
            names |= {inner.split(".")[0]} if inner else {alias.name for alias in node.names}
        if isinstance(node, ast.Import): names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mellm.")}
    return names & set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    assert path.stem in FLOORS, f"{path.stem} has no floor yet: add it to FLOORS in {Path(__file__).name}"
    above = {name for name in imports(path) if FLOORS.index(name) > FLOORS.index(path.stem)}
    assert not above, f"mellm.{path.stem} imports from above: {above}"


HEAVY = ("torch", "transformers", "peft", "matplotlib", "seaborn", "sklearn", "skimage", "dlib", "IPython", "nbdev", "joblib", "dask", "distributed", "torchvision")


@pytest.mark.parametrize("name", ["mellm", *(f"mellm.{p.stem}" for p in MODULES)])
def test_imports_are_light(name):
    code = f"import sys, time; t = time.time(); import {name}; print(f'{{time.time() - t:.2f}} s'); print([m for m in {HEAVY} if m in sys.modules])"
    seconds, heavy = python("-c", code).stdout.splitlines()
    print(f"import {name}: {seconds}")
    assert heavy == "[]", f"`import {name}` loads {heavy}; import it inside the function that needs it"


def test_public_names_load_on_demand():
    python("-c", "import mellm, sys; assert 'mellm.study' not in sys.modules; mellm.Study; assert 'mellm.study' in sys.modules; assert 'explain' in dir(mellm)")
    import mellm
    with pytest.raises(AttributeError, match="nonsense"): mellm.nonsense
