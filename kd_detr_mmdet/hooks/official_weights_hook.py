"""What MMEngine's Runner loads: another mmdet's is fitted, another model's not resumed from."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..detectors.teacher import weights_of
from ..families.dino import from_official
from ..utils.errors import ConfigError, shorten


@HOOKS.register_module()
class OfficialWeightsHook(Hook):
    """Fits what ``load_from`` names to this mmdet, as a teacher's checkpoint is.

    MMEngine leaves a layer of another shape as it was initialised, with a line in the log: a DINO
    of the zoo would lose the one that reads its boxes. See
    :func:`~kd_detr_mmdet.families.dino.from_official`. For the same reason a training is resumed
    from a checkpoint of the very same weights alone.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Change the weights in the checkpoint's content.

        Raises:
            ConfigError: If it is to be resumed from, and is another model's.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(weights := checkpoint.get("state_dict"), dict):
            return
        checkpoint["state_dict"] = weights = from_official(weights, model)
        if not runner._resume:
            return
        both = weights_of(model.state_dict()), weights_of(weights)
        shapes, theirs = ({name: value.shape for name, value in w.items()} for w in both)
        differ = sorted(k for k in shapes.keys() | theirs.keys() if shapes.get(k) != theirs.get(k))
        if differ:
            raise ConfigError(
                f"--resume: the checkpoint is of another model: {len(differ)} weights are on one "
                f"side only, or of another shape: {shorten(differ)}. To start from its weights "
                "set load_from, without --resume"
            )
