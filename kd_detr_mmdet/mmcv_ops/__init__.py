"""mmcv's compiled operators, or a stand-in for those that a detection transformer needs.

Importing ``mmdet.models`` imports ``mmcv._ext``, the compiled operators, which a plain
``pip install`` does not build. Where they are missing, :func:`provide_mmcv_ops` registers a module
of that name with PyTorch operators of the same signatures. Nothing of mmcv or mmdet is changed.
"""

from .stand_in import operator_sources, provide_mmcv_ops

__all__ = ["operator_sources", "provide_mmcv_ops"]
