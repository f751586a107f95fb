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


FORK = {"onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"}


@pytest.mark.parametrize(
    ("installed", "asked"),
    [
        ((), FORK),
        (("onedl-mmcv",), FORK),
        (("mmengine", "mmcv", "mmdet"), {"mmengine", "mmcv", "mmdet"}),
        (("mmengine-lite", "mmcv-lite", "mmdet"), {"mmengine-lite", "mmcv-lite", "mmdet"}),
        # The fork's mmcv would bring its mmengine, over the one that is there.
        (("mmengine",), {"mmengine", "mmcv-lite", "mmdet"}),
        (("mmcv",), {"mmengine", "mmcv", "mmdet"}),
    ],
)
def test_it_asks_for_one_family_and_keeps_what_is_there(monkeypatch, installed, asked):
    assert requirements(monkeypatch, installed) == asked
