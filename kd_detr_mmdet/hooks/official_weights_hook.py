"""Checkpoints of the official mmdet's zoo, read by the maintained fork."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..families.dino import from_official


@HOOKS.register_module()
class OfficialWeightsHook(Hook):
    """Fits what ``load_from`` names to this mmdet, as a teacher's checkpoint is.

    MMEngine leaves a layer of another shape as it was initialised, with a line in the log: a DINO
    of the zoo would lose the one that reads its boxes. See
    :func:`~kd_detr_mmdet.families.dino.from_official`.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change the weights in the checkpoint's content."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(weights := checkpoint.get("state_dict"), dict):
            checkpoint["state_dict"] = from_official(weights, model)
