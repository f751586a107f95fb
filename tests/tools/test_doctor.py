"""tools/doctor.py: what it reports, and when it says that training can run."""

import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import kd_detr_mmdet  # noqa: F401  makes mmcv.ops importable

PATH = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"


@pytest.fixture
def doctor():
    spec = importlib.util.spec_from_file_location("doctor", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_without(package, folder):
    """Run the script in its own process, from another folder, where a package cannot be found."""
    code = (
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"runpy.run_path({str(PATH)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_healthy_environment(tmp_path):
    done = run_without("torchvision", tmp_path)  # optional
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Training can run here." in done.stdout
    assert "not installed (optional)" in done.stdout
    for name in ("torch", "mmengine", "mmcv", "mmdet", "pycocotools", "roi_align", "others"):
        assert f" {name} " in done.stdout
    assert "PROBLEM" not in done.stdout
    assert len(done.stdout.splitlines()) <= 24  # one screen


@pytest.mark.parametrize("package", ["torch", "mmcv", "pycocotools"])
def test_missing_package(tmp_path, package):
    done = run_without(package, tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"{package} is not installed" in done.stdout
    assert re.search("^  pip install -r requirements.*txt$", done.stdout, re.MULTILINE)
    assert "Training can run" not in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0), (2, 7, 18)])
def test_unsupported_python(doctor, version):
    with pytest.raises(doctor.Problem, match=r"not supported: 3\.10 to 3\.12 is") as caught:
        doctor.check_python(version)
    assert "venv" in caught.value.remedy


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 12, 9)])
def test_supported_python(doctor, version):
    assert doctor.check_python(version).startswith("3.1")


@pytest.mark.parametrize(
    "code",
    [
        "assert False, 'MMCV==2.2.0 is used but incompatible'",
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "raise OSError('libcudart.so: cannot open shared object file')",
        "import a_missing_dependency",
    ],
)
def test_package_that_does_not_import(doctor, monkeypatch, tmp_path, code):
    (tmp_path / "refusing_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(doctor.Problem, match="refusing_package does not import") as caught:
        doctor.import_or_problem("refusing_package")
    assert code.split("'")[1 if "'" in code else 0].split()[-1] in str(caught.value)


def test_official_mmdet_that_refuses_is_replaced(doctor, monkeypatch, tmp_path):
    (tmp_path / "mmdet.py").write_text("assert False, 'MMCV==2.2.0 is used but incompatible'")
    monkeypatch.delitem(sys.modules, "mmdet", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.DISTRIBUTIONS, "mmdet", ("mmdet",))
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3.3.0")
    with pytest.raises(doctor.Problem, match=r"MMCV==2\.2\.0 is used but") as caught:
        doctor.check_package("mmdet")
    names = "onedl-mmengine mmengine mmengine-lite onedl-mmcv mmcv mmcv-lite mmcv-full mmdet"
    assert caught.value.remedy.startswith(f"pip uninstall -y {names} && pip install -r ")


@pytest.mark.parametrize(
    ("there", "file"),
    [
        ((), "requirements.txt"),
        (("onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"), "requirements.txt"),
        (("onedl-mmcv", "mmdet"), "requirements.txt"),
        (("mmengine", "mmcv-lite", "mmdet"), "requirements-official.txt"),
        (("mmdet",), "requirements-official.txt"),
    ],
)
def test_the_command_installs_the_family_that_is_there(doctor, monkeypatch, there, file):
    def version(name):
        if name not in there:
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor.install_command() == f"pip install -r {file}"
    assert (PATH.parents[1] / file).is_file()


def test_two_distributions_of_one_package(doctor, monkeypatch):
    monkeypatch.setitem(doctor.DISTRIBUTIONS, "mmcv", ("onedl-mmcv", "mmcv-lite"))
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.2.0")
    with pytest.raises(doctor.Problem, match="overwrite each other") as caught:
        doctor.check_package("mmcv")
    assert "pip uninstall -y onedl-mmcv mmcv-lite && pip install" in caught.value.remedy


def test_broken_torchvision_is_a_problem(doctor, monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('nms does not exist')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(doctor.Problem, match="nms does not exist") as caught:
        doctor.check_torchvision()
    assert caught.value.remedy == "pip uninstall -y torchvision"


def test_operators_work(doctor):
    assert doctor.check_operators().startswith("work on ")


def test_operators_with_wrong_values(doctor, monkeypatch):
    roi_align = doctor.import_or_problem("mmcv.ops").roi_align
    monkeypatch.setattr("mmcv.ops.roi_align", lambda *args: 2 * roi_align(*args))
    with pytest.raises(doctor.Problem, match="wrong values"):
        doctor.check_operators()


def test_operators_that_raise(doctor, monkeypatch):
    def missing(*args):
        raise NotImplementedError("nms is not compiled")

    monkeypatch.setattr("mmcv.ops.nms", missing)
    with pytest.raises(doctor.Problem, match="nms is not compiled"):
        doctor.check_operators()


def test_checkpoint(doctor, monkeypatch):
    assert doctor.check_checkpoint() == "can be read"

    def refuse(*args, **kwargs):
        raise ValueError("Weights only load failed")

    monkeypatch.setattr("torch.load", refuse)
    with pytest.raises(doctor.Problem, match="cannot be read .*Weights only"):
        doctor.check_checkpoint()


def test_configs(doctor, monkeypatch):
    assert doctor.check_configs() == "mmdet's can be read"

    def missing(*args):
        raise ModuleNotFoundError("No module named 'pkg_resources'")

    monkeypatch.setattr("mmengine.hub.get_config", missing)
    with pytest.raises(doctor.Problem, match="cannot be read .*pkg_resources"):
        doctor.check_configs()


def test_report_goes_on_after_a_problem(doctor, monkeypatch, capsys):
    def wrong():
        raise doctor.Problem("it is torn", "sew it")

    def crash():
        raise ZeroDivisionError("unforeseen")

    checks = {"first": wrong, "second": crash, "third": lambda: "fine"}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with warnings.catch_warnings():
        assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "it is torn" in out
    assert "\n  sew it\n" in out
    assert "ZeroDivisionError: unforeseen" in out
    assert "fine" in out
