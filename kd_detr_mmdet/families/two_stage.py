"""Two-stage detectors with RoI heads (Faster, Cascade and Mask R-CNN), as students."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..points.coordinates import pixel_corners, relative_boxes
from ..points.distill_points import Answer, DistillPoints
from ..utils.errors import ConfigError
from .base import Family, Look, Record, swapped


class TwoStageFamily(Family):
    """RoI heads: no queries, but a box can be asked like any proposal (paper, section 4.2).

    Faster R-CNN answers once; Cascade R-CNN at every stage, each at the boxes that the stage before
    has refined, as it works; of Mask R-CNN the box branch is asked. It can be taught, not teach.
    """

    detector_type = TwoStageDetector

    def __init__(self, detector: TwoStageDetector, blank_content: str = "zeros") -> None:
        super().__init__(detector, blank_content)
        self.takes_content = False
        roi_head = detector.roi_head
        known = [
            cls
            for cls in (StandardRoIHead, CascadeRoIHead)
            if type(roi_head)._bbox_forward is cls._bbox_forward
        ]
        if not known or not detector.with_rpn or not roi_head.with_bbox:
            raise ConfigError(
                f"{type(detector).__name__} with a {type(roi_head).__name__} cannot be distilled: "
                "KDDETR knows two-stage detectors with an RPN and a StandardRoIHead or "
                "CascadeRoIHead that predicts boxes"
            )
        for head in self.box_heads:
            softmax = self.has_background and not head.custom_cls_channels  # SeesawLoss has C + 2
            if not softmax or not isinstance(getattr(head, "fc_reg", None), nn.Module):
                raise ConfigError(
                    f"{type(head).__name__} cannot be distilled: KDDETR knows box heads with a "
                    "softmax over the classes and the background, and with box regression"
                )

    @classmethod
    def supports(cls, detector_type: type) -> bool:
        return (
            issubclass(detector_type, TwoStageDetector)
            and detector_type.loss is TwoStageDetector.loss
        )

    @property
    def box_heads(self) -> list[nn.Module]:
        """list: The box head of each stage."""
        heads = self.detector.roi_head.bbox_head
        return list(heads) if isinstance(heads, nn.ModuleList) else [heads]

    @property
    def content_dims(self) -> int:
        return 0

    @property
    def num_decoder_layers(self) -> int:
        return len(self.box_heads)

    @property
    def num_class_scores(self) -> int:
        return self.box_heads[0].num_classes + 1

    @property
    def has_background(self) -> bool:
        return all(not getattr(h.loss_cls, "use_sigmoid", False) for h in self.box_heads)

    @property
    def num_queries(self) -> int:
        return 0

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Within the context, remember features, proposals and the RoIs that the loss samples."""
        detector, record = self.detector, Record()
        extract, loss = detector.extract_feat, detector.roi_head.loss
        forward = detector.roi_head._bbox_forward

        def extract_feat(batch_inputs: Tensor) -> Any:
            record["features"] = extract(batch_inputs)
            return record["features"]

        def roi_loss(features: Any, rpn_results: list, samples: SampleList) -> dict:
            record["shapes"] = [sample.img_shape for sample in samples]
            record["proposals"] = [r.bboxes.detach() for r in rpn_results]
            return loss(features, rpn_results, samples)

        def bbox_forward(*inputs: Any) -> dict:
            results = forward(*inputs)
            # Of a cascade, those of its first stage. The last of several calls is the loss's own:
            # samplers of hard examples (OHEM) ask before it.
            if len(self.box_heads) == 1 or inputs[0] == 0:
                record["rois"] = inputs[-1].detach()
                if len(self.box_heads) == 1:
                    record["predicted"] = results["cls_score"], results["bbox_pred"]
            return results

        with ExitStack() as stack:
            stack.enter_context(swapped(detector, "extract_feat", extract_feat))
            stack.enter_context(swapped(detector.roi_head, "loss", roi_loss))
            stack.enter_context(swapped(detector.roi_head, "_bbox_forward", bbox_forward))
            yield record

    def queries(self, record: Record) -> DistillPoints:
        raise NotImplementedError("a two-stage detector has no queries")

    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        raise NotImplementedError("a two-stage detector has no decoder: see answer")

    def boxes(self, record: Record, kind: str) -> list[Tensor]:
        """The detector's own boxes of a recorded loss, for each image (n, 4), cxcywh in [0, 1].

        Args:
            record: Of a loss.
            kind: ``'sampled'``: the RoIs that the detection loss samples; ``'proposals'``: all
                that the RPN proposes, best first; ``'anchors'``: the RPN's anchors.
        """
        shapes = record["shapes"]
        if kind == "sampled":
            rois = record["rois"]
            found = [rois[rois[:, 0] == image, 1:] for image in range(len(shapes))]
        elif kind == "proposals":
            found = record["proposals"]
        else:
            features = record["features"]
            rpn_head = self.detector.rpn_head
            if not hasattr(rpn_head, "prior_generator"):
                raise ConfigError(
                    f"points.boxes='anchors': a {type(rpn_head).__name__} has no anchors of its "
                    "own: use 'sampled' or 'proposals'"
                )
            anchors = rpn_head.prior_generator.grid_priors(
                [level.shape[-2:] for level in features], device=features[0].device
            )
            found = [torch.cat(anchors)] * len(shapes)
        return [relative_boxes(boxes, shape) for boxes, shape in zip(found, shapes)]

    def answer(
        self,
        record: Record,
        points: DistillPoints,
        labels: Tensor | None = None,
        looks: list[Look] | None = None,
    ) -> Answer:
        """Ask every stage at points.

        What the only stage has said of a RoI in the recorded loss it is not asked again.

        Args:
            record: Of a loss.
            points: Where; their content is ignored.
            labels: The class whose box is wanted, shape (bs, M), where boxes are regressed class by
                class; None for the class that the stage itself finds most likely.
            looks: Not used: what it looked at are its own RoIs.
        """
        batch_size, num_points = points.boxes.shape[:2]
        shapes = record["shapes"]
        corners = [pixel_corners(boxes, shape) for boxes, shape in zip(points.boxes, shapes)]
        all_scores, all_boxes = [], []
        for stage, head in enumerate(self.box_heads):
            if points.rois is not None and "predicted" in record:
                out = self._known_or_predicted(record, corners, points.rois)
            else:
                where = (stage,) if len(self.box_heads) > 1 else ()
                out = self._predictions(record, corners, *where)
            scores, deltas = (of_all.view(batch_size, num_points, -1) for of_all in out)
            found = scores[..., :-1].argmax(-1)
            wanted = found if labels is None else labels
            refined = [
                [
                    head.regress_by_class(
                        corners[image], which[image], deltas[image], dict(img_shape=shape)
                    )
                    for image, shape in enumerate(shapes)
                ]
                for which in (wanted, found)
            ]
            all_scores.append(scores)
            all_boxes.append(
                torch.stack([relative_boxes(b, shape) for b, shape in zip(refined[0], shapes)])
            )
            corners = [boxes.detach() for boxes in refined[1]]  # where the next stage looks
        return Answer(torch.stack(all_scores), torch.stack(all_boxes), True)

    def _predictions(self, record: Record, corners: list[Tensor], *stage: int) -> tuple:
        """Class scores and box deltas (n, ...) at corners in pixels, all images' in one row."""
        roi_head = self.detector.roi_head
        with _running_statistics(roi_head):
            out = roi_head._bbox_forward(*stage, record["features"], bbox2roi(corners))
        return out["cls_score"], out["bbox_pred"]

    def _known_or_predicted(self, record: Record, corners: list[Tensor], rois: Tensor) -> tuple:
        """The same, with what is on record of the points that ``rois`` (bs, M) names."""
        new = rois < 0
        known = record["predicted"]
        image_of = record["rois"][:, 0].contiguous()
        images = torch.arange(len(corners), device=rois.device, dtype=image_of.dtype)
        row = rois + torch.searchsorted(image_of, images)[:, None]
        if new.any():
            row[new] = len(record["rois"]) + torch.arange(new.sum(), device=rois.device)
            asked = self._predictions(record, [boxes[n] for boxes, n in zip(corners, new)])
            known = [torch.cat(both) for both in zip(known, asked)]
        return tuple(of_all[row.flatten()] for of_all in known)


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Within the context, batch norms take the statistics they have, and learn none.

    Those of the points are not those of the RoIs that the detector works on, and a synchronised
    batch norm would wait for ranks that have nothing to ask.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
