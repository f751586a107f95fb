"""Say what of this project's environment was found, what is wrong, and the command that mends it.

    python tools/doctor.py

Exits with 0 where training can run: every package imports, and the operators and a checkpoint work
on this machine. Nothing is imported before its check, so that a broken package is reported.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON_VERSIONS = ((3, 10), (3, 12))
# Distributions that install the same import name: the maintained fork's, and the official ones.
DISTRIBUTIONS = {
    "mmengine": ("onedl-mmengine", "mmengine", "mmengine-lite"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite", "mmcv-full"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "cv2": ("opencv-python", "opencv-python-headless"),
    "pycocotools": ("pycocotools",),
}
OPENMMLAB = ("mmengine", "mmcv", "mmdet")


def installed(name: str) -> list[tuple[str, str]]:
    """Distributions that pip knows of an import name, and their versions."""
    found = []
    for distribution in DISTRIBUTIONS[name]:
        try:
            found.append((distribution, metadata.version(distribution)))
        except metadata.PackageNotFoundError:
            continue
    return found


def install_command() -> str:
    """The command that installs all that is tested together, of the family that is there."""
    there = {distribution for name in OPENMMLAB for distribution, _ in installed(name)}
    official = there and not any(distribution.startswith("onedl-") for distribution in there)
    return f"pip install -r requirements{'-official' if official else ''}.txt"


INSTALL = install_command()


class Problem(Exception):
    """Something that keeps training from running.

    Args:
        what: One line.
        remedy: The command that mends it.
    """

    def __init__(self, what: str, remedy: str = INSTALL) -> None:
        super().__init__(what)
        self.remedy = remedy


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its text, cut to fit the screen."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]


def import_or_problem(name: str, remedy: str = INSTALL):
    """Import a module.

    Raises:
        Problem: It is missing, or anything went wrong while it was imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise Problem(f"{name} is not installed", remedy) from error
        raise Problem(f"{name} does not import ({first_line(error)})", remedy) from error
    # AssertionError: a version that the package refuses. RuntimeError, OSError: a broken build.
    except Exception as error:
        raise Problem(f"{name} does not import ({first_line(error)})", remedy) from error


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> str:
    """Python's version."""
    lowest, highest = PYTHON_VERSIONS
    found = ".".join(map(str, version))
    if not lowest <= tuple(version[:2]) <= highest:
        wanted = " to ".join(".".join(map(str, v)) for v in PYTHON_VERSIONS)
        remedy = f"python3.11 -m venv venv && . venv/bin/activate && {INSTALL}"
        raise Problem(f"Python {found} is not supported: {wanted} is", remedy)
    return found


def check_torch() -> str:
    """PyTorch's version and device; that it works with the installed NumPy."""
    torch = import_or_problem("torch")
    import_or_problem("numpy")
    try:
        torch.ones(1).numpy()
    except RuntimeError as error:
        raise Problem(f"torch does not work with this NumPy ({first_line(error)})") from error
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"{torch.__version__}, {device}"


def check_torchvision() -> str:
    """torchvision, which may be missing but not be broken."""
    import_or_problem("torch")
    try:
        return import_or_problem("torchvision").__version__ + " (optional)"
    except Problem as problem:
        if problem.args[0] == "torchvision is not installed":
            return "not installed (optional)"
        # MMEngine imports it when a run starts, to report the environment.
        raise Problem(problem.args[0], "pip uninstall -y torchvision") from problem


def check_package(name: str) -> str:
    """Version and distribution of a package that imports."""
    found = installed(name)
    # OpenCV's two are the same code, and packages ask for either.
    if len(found) > 1 and name != "cv2":
        both = " ".join(distribution for distribution, _ in found)
        raise Problem(
            f"{both} overwrite each other's files", f"pip uninstall -y {both} && {INSTALL}"
        )
    remedy = INSTALL
    if name == "mmdet" and found and found[0][0] == "mmdet":
        # It refuses mmcv 2.2 and newer. All go, since the families overwrite each other's files.
        replaced = [there for package in OPENMMLAB for there, _ in installed(package)]
        remedy = f"pip uninstall -y {' '.join(replaced)} && {INSTALL}"
    import_or_problem(name, remedy)
    return ", ".join(" ".join(pair) for pair in found) or "imports, but pip does not know it"


def check_project() -> str:
    """This package, and with it all of mmdet's models."""
    version = import_or_problem("kd_detr_mmdet").__version__
    import_or_problem("mmdet.models")
    return version


def check_operators() -> str:
    """A forward and backward pass through every operator that training uses."""
    import_or_problem("kd_detr_mmdet")
    ops = import_or_problem("mmcv.ops")
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [4, 4, 8, 8.0]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    features = torch.ones(1, 32, 4, 4, device=device, requires_grad=True)
    try:
        kept = ops.nms(boxes, scores, 0.5)[1]
        pooled = ops.roi_align(features, torch.nn.functional.pad(boxes, (1, 0)), 2, 0.5)
        attention = ops.MultiScaleDeformableAttention(32, 4, 1, batch_first=True).to(device)
        values = features.flatten(2).transpose(1, 2)
        attended = attention(
            query=values,
            reference_points=torch.full((1, 16, 1, 2), 0.5, device=device),
            spatial_shapes=torch.tensor([[4, 4]], device=device),
            level_start_index=torch.tensor([0], device=device),
        )
        loss = import_or_problem("mmdet.models.losses").FocalLoss()(
            attended[0], torch.arange(16, device=device)
        )
        (loss + pooled.sum()).backward()
    except Exception as error:
        raise Problem(f"the operators do not work ({first_line(error)})") from error
    right = kept.tolist() == [0, 2] and torch.allclose(pooled, torch.ones_like(pooled))
    if not (right and features.grad.isfinite().all()):
        raise Problem("the operators give wrong values")
    return f"work on {device.type}"


def check_checkpoint() -> str:
    """A checkpoint of MMEngine's, as a teacher's is, written and read again."""
    import_or_problem("kd_detr_mmdet")
    import torch
    from mmengine.logging import HistoryBuffer

    from kd_detr_mmdet.utils.checkpoints import read_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint.pth")
        torch.save({"state_dict": {}, "message_hub": {"loss": HistoryBuffer([1.0], [1])}}, path)
        try:
            read_checkpoint(path, "checkpoint")
        except Exception as error:
            raise Problem(f"mmengine's cannot be read ({first_line(error)})") from error
    return "can be read"


def check_configs() -> str:
    """One of mmdet's own configs, which nearly every experiment inherits."""
    hub = import_or_problem("mmengine.hub")
    try:
        hub.get_config("mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py")
    except Exception as error:  # as a rule, official MMEngine without pkg_resources
        raise Problem(f"mmdet's cannot be read ({first_line(error)})") from error
    return "mmdet's can be read"


CHECKS = {
    "Python": check_python,
    "torch": check_torch,
    "torchvision": check_torchvision,
    "mmengine": lambda: check_package("mmengine"),
    "mmcv": lambda: check_package("mmcv"),
    "mmdet": lambda: check_package("mmdet"),
    "OpenCV": lambda: check_package("cv2"),
    "pycocotools": lambda: check_package("pycocotools"),
    "kd_detr_mmdet": check_project,
    "operators": check_operators,
    "checkpoints": check_checkpoint,
    "configs": check_configs,
}


def sources() -> dict[str, str]:
    """Where each operator comes from; empty where the package does not import."""
    try:
        operators = import_or_problem("kd_detr_mmdet.mmcv_ops")
    except Problem:  # the checks of the package and of the operators have told it
        return {}
    return operators.operator_sources()


def main() -> int:
    """Print the report.

    Returns:
        0 where training can run, else 1.
    """
    warnings.simplefilter("ignore")  # other packages' would hide the report
    sys.path.insert(0, str(ROOT))
    problems = []
    print("Found")
    for name, check in CHECKS.items():
        try:
            print(f"  {name:20} {check()}")
        except Problem as problem:
            print(f"  {name:20} PROBLEM")
            problems.append((name, str(problem), problem.remedy))
        except Exception as error:
            print(f"  {name:20} PROBLEM")
            problems.append((name, first_line(error), INSTALL))
        if name == "operators":
            for operator, source in sources().items():
                print(f"    {operator:18} {source}")
    if not problems:
        print("Training can run here.")
        return 0
    print("Wrong")
    for name, what, _ in problems:
        print(f"  {name:20} {what}")
    print("Mend it, one by one from the top, and run this again")
    for remedy in dict.fromkeys(remedy for _, _, remedy in problems):
        print(f"  {remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
