"""Packaging: ranges here, the tested set in requirements.txt."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# OpenMMLab's distributions and the maintained fork's share their import names: installing one over
# the other breaks both. So what is there already is what is asked for.
FAMILIES = {
    "mmengine": ("onedl-mmengine>=0.10.8", ("mmengine", "mmengine-lite")),
    "mmcv": ("onedl-mmcv>=2.3", ("mmcv", "mmcv-lite")),
    "mmdet": ("onedl-mmdetection>=3.5", ("mmdet",)),
}


def openmmlab_requirements() -> list[str]:
    """The maintained fork's distributions, less those whose official ones are installed."""
    wanted = []
    for fork, officials in FAMILIES.values():
        for official in officials:
            try:
                version(official)
            except PackageNotFoundError:
                continue
            break
        else:
            wanted.append(fork)
    return wanted


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
