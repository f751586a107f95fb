"""What PyTorch says of a detector and its images, in one line that says what to mend."""

import pytest
import torch
from conftest import build, dino_config
from mmdet.testing import demo_mm_inputs

from kd_detr_mmdet.utils.cli import one_line_errors


@pytest.mark.parametrize(
    ("size", "options", "told"),
    [
        # As where a teacher of usual size sees the images of a tiny student.
        ((8, 16), {}, "as many places in its feature maps as it has queries"),
        ((64, 96), dict(max_per_img=1000), "max_per_img is more than the detector's queries times"),
    ],
)
def test_too_few_places_or_scores(size, options, told, capsys):
    cfg = dino_config()
    cfg.test_cfg.update(options)
    model = build(cfg).eval()
    data = model.data_preprocessor(demo_mm_inputs(1, [(3, *size)]))
    with torch.no_grad(), pytest.raises(SystemExit) as stopped, one_line_errors():
        model(**data, mode="predict")
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
