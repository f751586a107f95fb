"""Draw where a distillation asks, and what both models say: show_points.py CONFIG [IMAGE].

For one image, a file or one of the training data, a column for each set of points: above, the
points, coloured by the teacher's foreground weight; below, both models' answers at the heaviest.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import mmcv
import torch
from matplotlib import pyplot as plt
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

from kd_detr_mmdet.detectors.teacher import load_strictly
from kd_detr_mmdet.families.base import swapped
from kd_detr_mmdet.points import Answer
from kd_detr_mmdet.utils.cli import (
    add_common_options,
    check_picture,
    one_line_errors,
    read_config,
)
from kd_detr_mmdet.utils.configs import is_kd_model
from kd_detr_mmdet.utils.data import check_data
from kd_detr_mmdet.utils.errors import ConfigError

ANSWERS_SHOWN = 8


def one_step(model: torch.nn.Module, batch: dict) -> dict[str, dict]:
    """Run one distillation step on one image and note what is asked and said.

    Returns:
        dict: By set, ``points`` (M, 4), ``weight`` (M) and the last layers' ``student`` and
        ``teacher`` boxes (M, 4), cxcywh in [0, 1]. The encoders' proposals, which are places of
        the memory and no boxes, are left out.
    """
    asked, sets = [], {}
    family, loss = model.student_family, model.distill_loss
    answer, compare = family.answer, loss.forward

    def noting_answer(record: dict, points: object, *rest: Tensor) -> Answer:
        asked.append(points.boxes[0])
        return answer(record, points, *rest)

    def noting_loss(student: Answer, teacher: Answer, name: str, *rest: object) -> dict:
        weight = loss.foreground_weight(teacher.cls_scores[-1], teacher.has_background)[0]
        sets[name] = dict(weight=weight, student=student.boxes[-1, 0], teacher=teacher.boxes[-1, 0])
        return compare(student, teacher, name, *rest)

    with (
        torch.no_grad(),
        swapped(family, "answer", noting_answer),
        swapped(loss, "forward", noting_loss),
    ):
        model.loss(batch["inputs"], batch["data_samples"])
    for boxes, found in zip(asked, sets.values()):
        found["points"] = boxes
    return {name: found for name, found in sets.items() if "points" in found}


def draw(path: Path, image: Tensor, sets: dict[str, dict]) -> None:
    """Save the picture of an image (3, H, W), RGB from 0 to 255, and its sets of points."""
    height, width = image.shape[-2:]
    figure, grid = plt.subplots(
        2, len(sets), figsize=(4.2 * len(sets), 7), squeeze=False, dpi=120, layout="constrained"
    )
    colors = plt.get_cmap("viridis")
    for column, (name, found) in zip(grid.T, sets.items()):
        for axes in column:
            axes.imshow(image.permute(1, 2, 0).clamp(0, 255).byte().numpy())
            axes.axis("off")
        top = found["weight"].amax().clamp(min=1e-6)
        order = found["weight"].argsort().tolist()  # the heaviest last, on top
        for index in order:
            share = float(found["weight"][index] / top)
            _box(column[0], found["points"][index], (width, height), colors(share), 0.5 + share)
        column[0].set_title(f"{name}: {len(order)} points, weight up to {float(top):.2f}")
        for index in order[-ANSWERS_SHOWN:]:
            _box(column[1], found["teacher"][index], (width, height), "lime", 1.5)
            _box(column[1], found["student"][index], (width, height), "red", 1.2, "--")
        column[1].set_title("answers: teacher solid, student dashed")
    figure.colorbar(
        plt.cm.ScalarMappable(cmap=colors), ax=grid[0], label="weight, relative to the heaviest"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _box(axes: object, box: Tensor, size: tuple, color: object, line: float, dash: str = "-"):
    x1, y1, x2, y2 = (bbox_cxcywh_to_xyxy(box) * box.new_tensor(size * 2)).tolist()
    axes.add_patch(
        plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=line, ls=dash)
    )


def training_image(cfg: Config, index: int) -> dict:
    """One of the training images, through the training pipeline.

    Raises:
        ConfigError: If the data are not there or there is no such image.
    """
    check_data(cfg, ("train_dataloader",))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if not 0 <= index < len(dataset):
        raise ConfigError(f"--index must be between 0 and {len(dataset) - 1}, got {index}")
    return dataset[index]


def image_of(cfg: Config, path: str) -> dict:
    """An image file, through the test pipeline, without annotations.

    Raises:
        ConfigError: If the file is no image.
    """
    try:
        image = mmcv.imread(path)
    except Exception as error:  # OpenCV's error has no class of its own without an import
        raise ConfigError(f"IMAGE {path!r} cannot be read: {error}") from error
    if image is None:
        raise ConfigError(f"IMAGE {path!r} is no image, or cut off")
    pipeline = get_test_pipeline_cfg(cfg)
    steps = [step for step in pipeline if "LoadAnnotations" not in step["type"]]
    sample = Compose(steps)(dict(img_path=path, img_id=0))
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample["data_samples"].gt_instances = nothing
    sample["data_samples"].ignored_instances = nothing
    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a distillation")
    parser.add_argument("image", nargs="?", help="image file; default: a training image")
    parser.add_argument("--index", type=int, default=0, help="which training image")
    parser.add_argument("--student", help="checkpoint of a trained student; default: untrained")
    parser.add_argument("--out", type=Path, default=Path("points.png"), help="the picture")
    add_common_options(parser)
    args = parser.parse_args()
    check_picture(args.out)
    cfg = read_config(args)
    if not is_kd_model(cfg.model):
        raise ConfigError("the config is not a distillation's: its model is no KDDETR")
    if cfg.model.get("points", {}).get("type") == "QueryPairing":
        raise ConfigError("points.type='QueryPairing' shares no points: there is nothing to draw")
    init_default_scope("mmdet")
    sample = image_of(cfg, args.image) if args.image else training_image(cfg, args.index)
    sample = pseudo_collate([sample])
    model = MODELS.build({**cfg.model, "interval": 1})  # this one step is distilled
    if model.point_generator.set_names == ("proposals",):
        raise ConfigError("points.proposals alone asks at no boxes: there is nothing to draw")
    model.init_weights()
    if args.student:
        load_strictly(model.student, args.student, what="--student")
    height, width = sample["data_samples"][0].img_shape[:2]
    image = sample["inputs"][0][:, :height, :width].flip(0)  # MMDetection loads BGR
    batch = model.data_preprocessor(sample, True)
    draw(args.out, image, one_step(model.train(), batch))
    print(args.out)


if __name__ == "__main__":
    with one_line_errors():
        main()
