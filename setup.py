"""Packaging: ranges here, the tested set in requirements.txt."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# OpenMMLab's distributions and the maintained fork's share their import names: installing one over
# the other breaks both. So the family that is there already is the one that is asked for.
FORK = ["onedl-mmengine>=0.10.8", "onedl-mmcv>=2.3", "onedl-mmdetection>=3.5"]
# Alternatives of one package, the one to install first; mmcv-lite has no compiled operators.
OFFICIAL = {
    ("mmengine", "mmengine-lite"): ">=0.10,<0.11",
    ("mmcv-lite", "mmcv"): ">=2.1,<2.2",
    ("mmdet",): ">=3.3,<3.4",
}


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def openmmlab_requirements() -> list[str]:
    """The official distributions where any of them is installed, else the maintained fork's."""
    found = [[name for name in names if is_installed(name)] for names in OFFICIAL]
    if not any(found):
        return FORK
    return [
        (there or names)[0] + versions for there, (names, versions) in zip(found, OFFICIAL.items())
    ]


setup(
    name="kd_detr_mmdet",
    version=re.search(
        r'__version__ = "(.+)"', (ROOT / "kd_detr_mmdet/__init__.py").read_text()
    ).group(1),
    description="KD-DETR (CVPR 2024) on MMDetection 3: distil detection transformers",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["kd_detr_mmdet", "kd_detr_mmdet.*"]),
    python_requires=">=3.10,<3.13",
    install_requires=["torch>=2.6", "numpy", "pycocotools", *openmmlab_requirements()],
    extras_require={"export": ["onnx>=1.16", "onnxruntime>=1.17"]},  # tools/export.py --onnx
)
