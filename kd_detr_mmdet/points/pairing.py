"""Distillation without shared points: the baselines that the paper starts from (section 3.3).

Every model is asked at its own queries only, and a rule decides which answer of the student is
compared with which of the teacher.
"""

from typing import NamedTuple

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.errors import ConfigError, check_choice
from ..utils.finite import matching_despite_nan
from .coordinates import pixel_corners
from .distill_points import Answer

STRATEGIES = ("inconsistent", "similar_foreground", "similar_general", "hungarian")


class Pairs(NamedTuple):
    """Answers to compare, row by row.

    Attributes:
        student: L_s layers of M rows per image.
        teacher: L_t layers of M rows per image.
        valid: Which rows exist, shape (bs, M); images with fewer pairs are filled up.
    """

    student: Answer
    teacher: Answer
    valid: Tensor


@TASK_UTILS.register_module()
class QueryPairing:
    """Compares the two models' own queries (Table 1 of the paper): baselines, not KD-DETR.

    Args:
        strategy: ``'inconsistent'``: index to index, up to the smaller number of queries.
            ``'similar_foreground'``: only the queries that are matched to ground truth, in the
            order of the ground truth. ``'similar_general'``: those, and the mean answer of all
            unmatched queries as one more, for the background. ``'hungarian'``: one-to-one
            between the two models' predictions, each of the teacher's taken for an object of its
            most likely class (as earlier work on distilling DETRs does).
        assigner: Config of the matcher, for all but ``'inconsistent'``. Default: mmdet's
            ``HungarianAssigner`` with the costs of mmdet's DETR configs. Both models' last
            decoder layers are matched, and all layers follow.

    The paper has no foreground rebalance here: ``distill_loss=dict(rebalance=False)``. With it
    the background point of ``'similar_general'``, of which the teacher is sure that it is none,
    hardly counts.

    Raises:
        ConfigError: If the strategy is unknown, or has nothing to match.
    """

    def __init__(self, strategy: str, assigner: dict | None = None) -> None:
        check_choice("points.strategy", strategy, STRATEGIES)
        if assigner is not None and strategy == "inconsistent":
            raise ConfigError(
                "points.assigner changes nothing with strategy='inconsistent', which pairs by "
                "index: leave it out"
            )
        self.strategy = strategy
        # By whether the scores have a background; one of the user's own is for both.
        self._assigners: dict[bool, object] = {}
        if assigner is not None:
            self._assigners = dict.fromkeys((False, True), TASK_UTILS.build(assigner))

    @property
    def set_names(self) -> tuple[str, ...]:
        """tuple: Names of the sets that this strategy makes."""
        return (self.strategy,)

    def __call__(
        self, student: Answer, teacher: Answer, batch_data_samples: SampleList
    ) -> dict[str, Pairs]:
        """Pair two models' answers at their own queries.

        Args:
            student: Its answer at its N_s queries.
            teacher: Its answer at its N_t queries.
            batch_data_samples: Ground truth and image sizes. An image without ground truth has no
                foreground pairs.

        Returns:
            dict: The pairs under the strategy's name.
        """
        # Matching and mixing multiply matrices, which AMP would do in half precision.
        with torch.autocast(student.boxes.device.type, enabled=False):
            return self._pairs(student, teacher, batch_data_samples)

    def _pairs(self, student: Answer, teacher: Answer, samples: SampleList) -> dict[str, Pairs]:
        mixes = [
            self._mixes(_of_image(student, i), _of_image(teacher, i), sample)
            for i, sample in enumerate(samples)
        ]
        rows = max(len(mix) for mix, _ in mixes)
        valid = student.boxes.new_zeros(len(mixes), rows, dtype=torch.bool)
        for image, (mix, _) in enumerate(mixes):
            valid[image, : len(mix)] = True
        paired = [
            _mix(answer, [image[side] for image in mixes], rows)
            for side, answer in enumerate((student, teacher))
        ]
        return {self.strategy: Pairs(*paired, valid)}

    @torch.no_grad()
    def _mixes(self, student: Answer, teacher: Answer, sample: object) -> tuple[Tensor, Tensor]:
        """Which queries make each row: shares (rows, N_s) and (rows, N_t) that add up to 1."""
        sizes = student.boxes.size(1), teacher.boxes.size(1)
        chosen = [student.boxes.new_zeros(0, size) for size in sizes]
        if self.strategy == "inconsistent":
            rows = min(sizes)
            return tuple(torch.eye(rows, size, device=chosen[0].device) for size in sizes)
        if self.strategy == "hungarian":
            targets = _as_objects(teacher, sample.metainfo)
            mine, theirs = self._match(student, targets, sample.metainfo)
            return _one_hot(mine, sizes[0]), _one_hot(theirs, sizes[1])

        both = []
        for answer in (student, teacher):
            queries, objects = self._match(answer, sample.gt_instances, sample.metainfo)
            both.append(dict(zip(objects.tolist(), queries.tolist())))
        # With fewer queries than objects a model leaves some objects out.
        shared = sorted(both[0].keys() & both[1].keys())
        for side, (matched, size) in enumerate(zip(both, sizes)):
            queries = torch.tensor(
                [matched[number] for number in shared], dtype=torch.long, device=chosen[0].device
            )
            chosen[side] = _one_hot(queries, size)
        if self.strategy == "similar_general":
            unmatched = [
                chosen[side]
                .new_ones(size)
                .index_fill(0, chosen[side].new_tensor(list(both[side].values())).long(), 0)
                for side, size in enumerate(sizes)
            ]
            if all(share.any() for share in unmatched):
                chosen = [
                    torch.cat([rows, (share / share.sum())[None]])
                    for rows, share in zip(chosen, unmatched)
                ]
        return tuple(chosen)

    def _match(self, answer: Answer, objects: InstanceData, meta: dict) -> tuple[Tensor, Tensor]:
        """Match one image's answer (last layer) to objects: indices of queries and of objects."""
        predicted = InstanceData(
            scores=answer.cls_scores[-1].float(),
            bboxes=pixel_corners(answer.boxes[-1].float(), meta["img_shape"]),
        )
        assigner = self._assigner(answer.has_background)
        matched = matching_despite_nan(assigner.assign)(predicted, objects, meta).gt_inds
        queries = matched.nonzero(as_tuple=True)[0]
        return queries, matched[queries] - 1

    def _assigner(self, has_background: bool) -> object:
        if has_background not in self._assigners:
            score = "ClassificationCost" if has_background else "FocalLossCost"
            self._assigners[has_background] = TASK_UTILS.build(
                dict(
                    type="HungarianAssigner",
                    match_costs=[
                        dict(type=score, weight=1.0 if has_background else 2.0),
                        dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                        dict(type="IoUCost", iou_mode="giou", weight=2.0),
                    ],
                )
            )
        return self._assigners[has_background]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.strategy!r})"


def _of_image(answer: Answer, image: int) -> Answer:
    """One image's answer: (L, N, C) and (L, N, 4)."""
    return Answer(answer.cls_scores[:, image], answer.boxes[:, image], answer.has_background)


def _as_objects(answer: Answer, meta: dict) -> InstanceData:
    """A model's predictions as ground truth, boxes in pixels."""
    boxes = pixel_corners(answer.boxes[-1].float(), meta["img_shape"])
    return InstanceData(bboxes=boxes, labels=answer.labels)


def _one_hot(indices: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(indices, size).float()


def _mix(answer: Answer, shares: list[Tensor], rows: int) -> Answer:
    """Weighted means of an answer's queries, filled up to ``rows`` rows with plain zeros."""
    padded = torch.stack(
        [torch.nn.functional.pad(share, (0, 0, 0, rows - len(share))) for share in shares]
    )
    scores, boxes = (padded @ t.float() for t in (answer.cls_scores, answer.boxes))
    return Answer(scores, boxes, answer.has_background)
