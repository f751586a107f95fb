# What every config of this project needs, so that mmdet's own tools can run it too.
custom_imports = dict(imports=["kd_detr_mmdet"], allow_failed_imports=False)
