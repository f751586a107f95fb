"""setup.py: ranges that leave an installed family of OpenMMLab distributions alone."""

import runpy
from importlib import metadata
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "setup.py"


def requirements(monkeypatch, installed):
    asked = {}
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: asked.update(kwargs))

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.chdir(SETUP.parent)
    runpy.run_path(str(SETUP))
    assert asked["python_requires"] == ">=3.10,<3.13"
    assert "torch>=2.6" in asked["install_requires"]
    return {r.split(">")[0] for r in asked["install_requires"]} - {"torch", "numpy", "pycocotools"}


@pytest.mark.parametrize(
    ("installed", "asked"),
    [
        ((), {"onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"}),
        (("mmengine", "mmcv", "mmdet"), set()),
        (("mmengine-lite", "mmcv-lite", "mmdet"), set()),
        (("onedl-mmcv",), {"onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"}),
    ],
)
def test_it_asks_for_the_fork_only_where_the_official_ones_are_not(monkeypatch, installed, asked):
    assert requirements(monkeypatch, installed) == asked
