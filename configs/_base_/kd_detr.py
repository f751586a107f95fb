# What every config of this project needs, so that mmdet's own tools can run it too. Those do not
# compare the class names of teacher and data set as tools/train.py does: for them add
# custom_hooks=[dict(type="DistillReportHook")].
custom_imports = dict(imports=["kd_detr_mmdet"], allow_failed_imports=False)
