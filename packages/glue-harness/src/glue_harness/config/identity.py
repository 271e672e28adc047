"""Settings that do not change the numbers and are left out of a run's identity."""

from glue_harness.config.own_rows import CHOICES, DATASET, FILES

__all__ = ["OPTIONAL", "WITHOUT_EFFECT"]

WITHOUT_EFFECT = ("output_dir", "device", "num_workers", "offline", "overwrite", "sharding", "tracker")
"""Fields that say where and how a run happens, and do not change its numbers."""

OPTIONAL = (
    "model_config",
    *FILES,
    *DATASET,
    *CHOICES,
    "task_sampling",
    "metric",
    "label_noise",
    "hold_out",
    "evaluate_on",
    "max_eval_samples",
    "decay_all",
    "early_stopping",
    "early_stopping_delta",
    "load_best",
    "matmul_precision",
    "compile",
    "head",
    "head_seed",
    "schedule_steps",
    "metric_batch",
)
"""Left out of the hash while unset, so that older runs keep theirs."""
