"""Checkpoints that appear whole or not at all."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..utils.files import remove_leftovers, write_atomically


@register_backend("atomic")
class AtomicBackend(LocalBackend):
    """MMEngine's local files, written by :func:`~kd_detr_mmdet.utils.files.write_atomically`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for runs that may be killed at any moment or fill the disk.

    A local checkpoint, and ``last_checkpoint`` that names it, appear whole or not at all, and no
    checkpoint is removed before the one that replaces it is there: so there is room for one more
    than ``max_keep_ckpts`` to be kept free. What a killed run left unfinished is removed when the
    next one starts. The options are MMEngine's.
    """

    @classmethod
    def take_over(cls, runner: Runner) -> None:
        """Put this hook in the place of each of MMEngine's that a runner has.

        Not by the config: the one that the runner has saved still works without this package.
        """
        for index, hook in enumerate(runner.hooks):
            if type(hook) is CheckpointHook:
                runner.hooks[index] = ours = cls()
                vars(ours).update(vars(hook))

    def before_train(self, runner: Runner) -> None:
        folder = self.out_dir or runner.work_dir
        named = self.backend_args or self.file_client_args
        if not named and isinstance(get_file_backend(folder), LocalBackend):
            self.backend_args = dict(backend="atomic")
        super().before_train(runner)
        if is_main_process():
            remove_leftovers(runner.work_dir)
            if isinstance(self.file_backend, AtomicBackend):
                remove_leftovers(self.out_dir)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, then say so, then remove what is outdated; MMEngine begins with the removal."""
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids[0])
            self.keep_ckpt_ids.append(step)  # a deque: the oldest falls out
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_atomically(Path(runner.work_dir, "last_checkpoint"), self.last_ckpt.encode())
            self._remove(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """MMEngine's, but the previous best checkpoints are removed at the end."""
        outdated = []
        self.file_backend.remove = outdated.append  # this hook's own backend
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del self.file_backend.remove
        for path in outdated:
            self._remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove(self, path: str | None) -> None:
        if path is not None and self.file_backend.isfile(path):
            self.file_backend.remove(path)
