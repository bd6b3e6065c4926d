"""The server must run where torch is absent: every module of service/ imports and the command line helps,
with torch and the exporter's libraries blocked."""

import json
import subprocess
import sys
from pathlib import Path

BLOCKED = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "safetensors",
    "sklearn",
    "scipy",
    "matplotlib",
    "cv2",
)

PREAMBLE = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, timeout=120
    )


def test_every_module_of_the_server_imports_without_torch() -> None:
    modules = sorted(
        ".".join(path.relative_to(Path.cwd()).with_suffix("").parts)
        for path in (Path.cwd() / "service").rglob("*.py")
        if path.name not in ("__main__.py", "ray_serve.py")
    )
    assert len(modules) > 15
    done = run(
        f"import importlib, json\nfor m in {modules!r}: "
        "importlib.import_module(m)\nprint(json.dumps(sorted(m for m in sys.modules if m == 'torch')))"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


def test_a_picture_is_explained_without_torch(tiny_repository: Path, jpeg: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg)
    model = tiny_repository / "tiny" / "1" / "model.onnx"
    arguments = [
        "paca",
        "explain",
        str(tmp_path / "cat.jpg"),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = run(f"sys.argv = {arguments!r}\nfrom service.cli import main\nmain()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["predictions"][0]["label"] in ("red", "green", "blue", "grey")
    assert (tmp_path / "out" / "cat.html").stat().st_size > 1000


def test_export_says_which_extra_to_install_and_exits_2() -> None:
    done = run(
        "sys.argv = ['paca', 'export', 'pacavit_tiny_p2cconv_100_0', '--out', 'x.onnx']\nfrom service.cli "
        "import main\nmain()"
    )
    assert done.returncode == 2
    assert "needs the extra 'export'" in done.stderr


def test_import_needs_its_own_extra_and_no_torch(tmp_path: Path) -> None:
    done = run("sys.argv = ['paca', 'import', 'x.onnx']\nfrom service.cli import main\nmain()")
    assert done.returncode == 2
    assert "needs the extra 'import' (onnx is missing)" in done.stderr
    without = PREAMBLE.replace("'onnx',", "")
    code = "import export.importing.run\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", without + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_exported_file_is_evaluated_without_torch(
    tiny_repository: Path, jpeg: bytes, tmp_path: Path
) -> None:
    for name in ("red", "green"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1").write_bytes(jpeg)
    model = tiny_repository / "tiny" / "1" / "model.onnx"
    for extra in ([], ["--json"]):
        arguments = ["paca", "evaluate", str(model), str(tmp_path / "photos"), "-o", str(tmp_path), *extra]
        done = run(f"sys.argv = {arguments!r}\nfrom service.cli import main\nmain()")
        assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout)
    assert scores["scores"]["pictures"] == 2
    assert scores["accuracy_interval"][0] < 0.5 < scores["accuracy_interval"][1]
    assert (tmp_path / "confusion.png").is_file()


def test_a_checkpoint_needs_torch_and_the_hint_is_true(tmp_path: Path) -> None:
    arguments = ["paca", "evaluate", "model.safetensors", str(tmp_path)]
    done = run(f"sys.argv = {arguments!r}\nfrom service.cli import main\nmain()")
    assert done.returncode == 2
    assert "`make setup` or `pip install '.[export,cpu]'`" in done.stderr


def test_help_lists_every_command_without_torch() -> None:
    done = run("sys.argv = ['paca', '--help']\nfrom service.cli import main\nmain()")
    assert done.returncode == 0
    for name in ("serve", "classify", "explain", "inspect", "export", "import", "train", "evaluate"):
        assert name in done.stdout
