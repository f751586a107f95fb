"""blank_content='memory': the encoder's word at a box, on the level of its size."""

import pytest
import torch
from conftest import DINO_WIDTH, build, dab_config, ddq_config, dino_config

from kd_detr_mmdet.families import build_family
from kd_detr_mmdet.points import DistillPoints
from kd_detr_mmdet.utils import ConfigError


@pytest.fixture
def record():
    """Two levels of 4 x 6 and 2 x 3 places; in the second image half of the width is padding."""
    places = torch.arange(24 + 6, dtype=torch.float)
    memory = torch.stack([places, places + 100])[..., None].expand(-1, -1, DINO_WIDTH)
    return dict(
        inputs=dict(
            memory=memory,
            spatial_shapes=torch.tensor([[4, 6], [2, 3]]),
            level_start_index=torch.tensor([0, 24]),
            valid_ratios=torch.tensor([[[1.0, 1.0]] * 2, [[0.5, 1.0]] * 2]),
        )
    )


def test_the_level_of_an_oblong_box(record):
    """The root of its area counts: 0.05 of a box of 0.2 x 0.0125, on the first level."""
    family = build_family(build(dino_config()), "memory")
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.0125]]]).expand(2, -1, -1)
    content = family.content_at(DistillPoints(boxes), record)
    assert (content[0, 0] == 2 * 6 + 3).all()  # row 2, column 3; on the second level 24 + 4


def test_the_place_of_a_box_in_the_memory(record):
    family = build_family(build(dino_config()), "memory")
    boxes = torch.tensor(
        [
            [0.5, 0.5, 0.05, 0.05],  # level 0: column 3, row 2 -> 2 * 6 + 3
            [0.99, 0.99, 0.9, 0.9],  # the last level there is: column 2, row 1 -> 24 + 1 * 3 + 2
            [1.0, 1.0, 0.05, 0.05],  # the border belongs to the last place
            [0.0, 0.0, 0.1, 0.1],  # a side of 0.05 * 2: level 1
            [0.0, 0.0, 0.08, 0.08],  # 0.05 * 2 ** 0.68: nearest to level 1
        ]
    ).expand(2, -1, -1)
    content = family.content_at(DistillPoints(boxes), record)
    assert content[0, :, 0].tolist() == [15, 29, 23, 24, 24]
    # Half of the second image's width: column 0.5 * 0.5 * 6 = 1, at the right border 3 and 1.
    assert content[1, :, 0].tolist() == [113, 128, 121, 124, 124]
    assert content.shape == (2, 5, DINO_WIDTH)


def test_ddq_maps_it_as_it_maps_its_own_queries(record):
    ddq = build(ddq_config(DINO_WIDTH))
    boxes = torch.tensor([[[0.5, 0.5, 0.05, 0.05]]]).expand(2, -1, -1)
    content = build_family(ddq, "memory").content_at(DistillPoints(boxes), record)
    expected = ddq.query_map(torch.full((DINO_WIDTH,), 15.0))
    assert torch.allclose(content[0, 0], expected)
    assert not content.requires_grad


def test_ddqs_own_content_is_the_memory_at_its_proposals(batch):
    # Its proposals are near the places that they were made at: most are found again.
    ddq = build(ddq_config()).eval()
    family = build_family(ddq, "memory")
    data = batch(ddq, training=False)
    with torch.no_grad():
        record = family.look(data["inputs"], data["data_samples"])
    own = family.queries(record)
    found = family.content_at(DistillPoints(own.boxes), record)
    assert torch.isclose(own.content, found, atol=1e-5).all(-1).float().mean() > 0.5


def test_who_has_none(tmp_path):
    with pytest.raises(ConfigError, match="DABDETR takes 'zeros', 'mean' or 'nearest'"):
        build_family(build(dab_config()), "memory")
