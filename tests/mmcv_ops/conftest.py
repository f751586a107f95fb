import kd_detr_mmdet  # noqa: F401  before the tests import mmcv.ops
