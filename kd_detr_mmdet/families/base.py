"""What every detector family can do: be recorded while it works, and be asked at points."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from mmdet.models.detectors import DetectionTransformer
from mmdet.structures import SampleList
from torch import Tensor, nn

from ..points.distill_points import Answer, DistillPoints
from ..utils.errors import ConfigError, check_choice

BLANK_CONTENT = ("zeros", "mean", "nearest", "memory")
SAME_PLACE = 1e-4  # what a box may lose on its way through a sigmoid and back


@contextmanager
def swapped(module: nn.Module, name: str, function: Callable) -> Iterator[None]:
    """Within the context, a method of one instance is another; its class is left alone."""
    before = vars(module).get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


class Record(dict):
    """What a detector knows of a batch of images: all that asking it at any other point needs.

    Of a DETR one decoder call: its keyword arguments under ``inputs``, to what it projected the
    images' memory under ``projections``, and its result for :meth:`Family.outputs`. Of a two-stage
    detector ``features``, ``shapes`` of the images, ``proposals``, the ``rois`` that its loss
    samples and, if it has one stage only, what it has ``predicted`` there. It holds for the
    weights that the detector had then.
    """


class Look(NamedTuple):
    """Whether a detector looked at the points that it was asked at.

    Attributes:
        detector: Name of its class.
        there: A boolean scalar, on the detector's device. A NaN is the same place as a NaN: it
            becomes a loss that is not finite, which stops every rank at once.
    """

    detector: str
    there: Tensor


class Family(ABC):
    """The only place that knows how one family of detectors stores and decodes its queries.

    Args:
        detector: A detector of the family.
        blank_content: The content of a query at a point that brings none. ``'zeros'`` (the
            authors' code); ``'mean'``, the mean of the detector's own queries for that image;
            ``'nearest'``, the content of that own query whose centre is nearest to the point's; or
            ``'memory'``, what the encoder says at the box (DINO and DDQ-DETR).

    Raises:
        ConfigError: If the detector has no such content.

    Attributes:
        takes_content: Whether content that comes with a point is used. False means that every
            point is treated as one without content.
    """

    detector_type: type[DetectionTransformer]  # MMDetection's class of the family
    has_memory = False  # whether there is a memory_at

    def __init__(self, detector: DetectionTransformer, blank_content: str = "zeros") -> None:
        check_choice("blank_content", blank_content, BLANK_CONTENT)
        if blank_content == "memory" and not self.has_memory:
            raise ConfigError(
                f"blank_content='memory' is for DINO and DDQ-DETR, whose encoders propose a box at "
                f"every place of their memory; {type(detector).__name__} takes 'zeros', 'mean' or "
                "'nearest'"
            )
        self.detector = detector
        self.blank_content = blank_content
        self.takes_content = True

    @classmethod
    def supports(cls, detector_type: type) -> bool:
        """Whether detectors of this class decode the way the family file assumes.

        A subclass that prepares or decodes queries its own way (Grounding DINO is a subclass of
        DINO) is not of the family.
        """
        return issubclass(detector_type, cls.detector_type) and all(
            getattr(detector_type, name) is getattr(cls.detector_type, name)
            for name in ("forward_transformer", "pre_decoder", "forward_decoder")
        )

    @property
    def box_dims(self) -> int:
        """int: How many of a point's ``cx, cy, w, h`` the decoder is given: 4, 2 or 0."""
        return 4

    @property
    def content_dims(self) -> int:
        """int: Width of a query's content; 0 where queries are made of boxes alone."""
        return self.detector.embed_dims

    @property
    def num_decoder_layers(self) -> int:
        """int: L of this detector's answers."""
        return self.detector.decoder.num_layers

    @property
    def num_class_scores(self) -> int:
        """int: C of this detector's answers."""
        return self.detector.bbox_head.cls_out_channels

    @property
    def has_background(self) -> bool:
        """bool: Whether scores are a softmax whose last entry is the background."""
        return not self.detector.bbox_head.loss_cls.use_sigmoid

    @property
    def num_queries(self) -> int:
        """int: Number of the detector's own queries."""
        return self.detector.num_queries

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Within the context, remember the last decoder call; the detector works as ever.

        The recorder sits on the instance, not on the class, and is gone afterwards.
        """
        decode = self.detector.forward_decoder
        record = Record()

        def forward_decoder(**inputs: Tensor) -> dict:
            projections: dict = {}
            with self._projecting_once(inputs, projections):
                outputs = decode(**inputs)
            record.update(inputs=inputs, outputs=outputs, projections=projections)
            return outputs

        with swapped(self.detector, "forward_decoder", forward_decoder):
            yield record

    @contextmanager
    def _projecting_once(self, inputs: dict, known: dict) -> Iterator[None]:
        """Within the context, cross-attention projects the images' memory unless it is known.

        These layers see every place of the images, and the same in each call of the decoder: the
        recorded call fills ``known``, and those at points take from it. DETR's are inside of
        PyTorch's attention, where nothing can be taken.
        """
        memories = [inputs[name] for name in ("memory", "memory_pos") if name in inputs]

        def once(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
            project = layer.forward

            def forward(tensor: Tensor) -> Tensor:
                if not any(tensor is memory for memory in memories):
                    return project(tensor)
                # What was computed without a gradient has none to give.
                key = layer, id(tensor), torch.is_grad_enabled()
                if key not in known:
                    known[key] = project(tensor)
                return known[key]

            return forward

        with ExitStack() as stack:
            for decoder_layer in self.detector.decoder.layers:
                for module in decoder_layer.cross_attn.modules():
                    if isinstance(module, nn.Linear):
                        stack.enter_context(swapped(module, "forward", once(module)))
            yield

    def look(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, decode: bool = True
    ) -> Record:
        """Run the detector over images (bs, 3, H, W) as at inference, and record its decoding.

        Without ``decode`` its own queries wait to be decoded until :meth:`outputs` is asked.
        """
        record = Record(projections={})

        def forward_decoder(**inputs: Tensor) -> dict:
            record["inputs"] = inputs
            return {}

        with swapped(self.detector, "forward_decoder", forward_decoder):
            features = self.detector.extract_feat(batch_inputs)
            self.detector.forward_transformer(features, batch_data_samples)
        if decode:
            self.outputs(record)
        return record

    def outputs(self, record: Record) -> dict:
        """What the decoder made of the detector's own queries in a record."""
        if "outputs" not in record:
            with self._projecting_once(record["inputs"], record["projections"]):
                record["outputs"] = self.detector.forward_decoder(**record["inputs"])
        return record["outputs"]

    @abstractmethod
    def queries(self, record: Record) -> DistillPoints:
        """The detector's own queries in a record, as points; denoising queries are left out."""

    @abstractmethod
    def decode(self, record: Record, boxes: Tensor, content: Tensor | None) -> dict:
        """Decode queries at boxes (bs, M, 4), apart from all others.

        ``content`` has shape (bs, M, content_dims); None where ``content_dims`` is 0.
        """

    @property
    def proposes(self) -> str | None:
        """str: Whether the encoder scores its proposals for each of the ``'classes'`` or, by the
        first score alone, for any ``'object'``; None where it proposes nothing.
        """
        return None

    def proposals(self, record: Record) -> tuple[Answer, Tensor]:
        """What a two-stage detector's encoder proposes, at every place of its memory.

        These are the proposals of which the detector takes the best as its queries' boxes.

        Returns:
            tuple: An answer of one layer at M places, and which of them are within the image,
            shape (bs, M).
        """
        detector, inputs = self.detector, record["inputs"]
        memory, anchors = detector.gen_encoder_output_proposals(
            inputs["memory"], inputs["memory_mask"], inputs["spatial_shapes"]
        )
        head, stage = detector.bbox_head, detector.decoder.num_layers
        boxes = (head.reg_branches[stage](memory) + anchors).sigmoid()
        scores = head.cls_branches[stage](memory)
        if self.proposes == "object":
            scores = scores[..., :1]
        return Answer(scores[None], boxes[None]), anchors.isfinite().all(-1)

    def memory_at(self, record: Record, boxes: Tensor) -> Tensor:
        """What the encoder says at boxes (bs, M, 4), shape (bs, M, content_dims)."""
        raise NotImplementedError

    def looked_at(self, outputs: dict) -> Tensor:
        """Where a decoder call's first layer looked, shape (bs, M, box_dims)."""
        return outputs["references"][0]

    def own_rows(self, record: Record) -> slice:
        """Which rows of a recorded call are the detector's own queries, less those for training."""
        return slice(None)

    def own_answer(self, record: Record) -> Answer:
        """What the detector says at its own queries; in a recorded loss it has said so already."""
        rows = self.own_rows(record)
        answer = self._read(self.outputs(record))
        return answer._replace(
            cls_scores=answer.cls_scores[:, :, rows], boxes=answer.boxes[:, :, rows]
        )

    def answer(
        self,
        record: Record,
        points: DistillPoints,
        labels: Tensor | None = None,
        looks: list[Look] | None = None,
    ) -> Answer:
        """Ask the detector at points, against the images of a record.

        Args:
            record: What the detector knows of the images.
            points: Where to ask.
            labels: The class to ask for at each point, shape (bs, M), for detectors that regress
                boxes class by class; the others have one box for all.
            looks: Where to note whether it looked at the points, for one :func:`check_looks` at
                all answers together; None to check it here, which waits for a GPU.

        Raises:
            RuntimeError: If the detector did not look at the points' boxes.
        """
        with self._projecting_once(record["inputs"], record["projections"]):
            outputs = self.decode(record, points.boxes, self.content_at(points, record))
        if self.box_dims:
            look = self._look_of(outputs, points)
            check_looks([look]) if looks is None else looks.append(look)
        return self._read(outputs)

    @torch.no_grad()
    def _look_of(self, outputs: dict, points: DistillPoints) -> Look:
        looked_at, told = self.looked_at(outputs), points.boxes[..., : self.box_dims]
        name = type(self.detector).__name__
        if looked_at.shape != told.shape:
            raise _elsewhere(name)
        same = torch.isclose(looked_at.float(), told, rtol=0, atol=SAME_PLACE, equal_nan=True)
        return Look(name, same.all())

    @torch.no_grad()
    def content_at(self, points: DistillPoints, record: Record) -> Tensor | None:
        """The content that this detector's queries get at points: (bs, M, content_dims) or None.

        This is the one place that decides it: content that comes with the points if the detector
        can use it (:func:`share_content`), else what ``blank_content`` names. No gradient: points
        are not learned.
        """
        if self.content_dims == 0:
            return None
        if points.content is not None and self.takes_content:
            return points.content
        batch_size, num_points = points.boxes.shape[:2]
        if self.blank_content == "zeros":
            return points.boxes.new_zeros(batch_size, num_points, self.content_dims)
        if self.blank_content == "memory":
            return self.memory_at(record, points.boxes)
        own = self.queries(record)
        if self.blank_content == "mean":
            return own.content.mean(1, keepdim=True).expand(-1, num_points, -1)
        distance = torch.cdist(points.boxes[..., :2], own.boxes[..., :2])
        nearest = distance.argmin(-1, keepdim=True).expand(-1, -1, self.content_dims)
        return own.content.gather(1, nearest)

    def _read(self, outputs: dict) -> Answer:
        return Answer(*self.detector.bbox_head(**outputs), self.has_background)

    def _with_first_sizes(self, centers: Tensor, record: Record) -> Tensor:
        """Boxes for queries that start from a centre: with the sizes that the first layer sees."""
        sizes = self.own_answer(record).boxes[0, ..., 2:]
        return torch.cat([centers, sizes], -1).detach().float()


def check_looks(looks: list[Look]) -> None:
    """Refuse answers at other places than the points; waits for the device once.

    Raises:
        RuntimeError: If a detector did not look at the points' boxes.
    """
    if not looks or torch.stack([look.there for look in looks]).all():
        return
    raise _elsewhere(next(look.detector for look in looks if not look.there))


def _elsewhere(detector: str) -> RuntimeError:
    return RuntimeError(
        f"{detector} did not look at the distillation points' boxes: student and teacher would be "
        "compared at different places"
    )


def share_content(student: Family, teacher: Family, student_content: str) -> None:
    """Decide whether the student's queries at the teacher's points carry the teacher's content.

    Args:
        student: Its ``takes_content`` is set.
        teacher: Whose content it is.
        student_content: ``'teacher'`` takes it as it is, ``'blank'`` ignores it, and ``'auto'`` is
            the first within one family where the widths agree, else the second: what one family's
            decoder was trained to read says nothing to another's.

    Raises:
        ConfigError: If the teacher's content is demanded and the student cannot hold it.
    """
    check_choice("student_content", student_content, ("auto", "teacher", "blank"))
    dims = student.content_dims, teacher.content_dims
    fits = dims[0] == dims[1] and 0 not in dims
    if student_content == "teacher" and not fits:
        raise ConfigError(
            f"student_content='teacher' needs queries of one width, but the teacher's content has "
            f"{dims[1]} channels and the student's {dims[0]} (0: made of boxes alone): use 'auto' "
            "or 'blank'"
        )
    same_family = type(student) is type(teacher)
    student.takes_content = student_content == "teacher" or (
        student_content == "auto" and fits and same_family
    )


def unsupported(detector: object, known: list[str]) -> ConfigError:
    """The error for a detector that no family file covers."""
    return ConfigError(
        f"{type(detector).__name__} cannot be distilled: KDDETR knows {', '.join(known)}; "
        "register a family for another one, like those of kd_detr_mmdet/families (docs/guide.md)"
    )
