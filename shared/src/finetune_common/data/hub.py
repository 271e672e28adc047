"""A dataset of the hub, or a local folder that `datasets` reads, as tables."""

import warnings
from typing import Any

from finetune_common.data.messages import refusal

__all__ = ["read_dataset"]

VALIDATION = ("validation", "valid", "dev", "val")
"""Names that datasets use for validation rows."""


def read_dataset(name: str, config: str | None = None) -> dict[str, Any]:
    """Return the tables of a dataset's train, validation and test splits, if it has them.

    With `HF_DATASETS_OFFLINE=1` it comes from the cache of an earlier call.

    Args:
        name: On the hub (`imdb`, `owner/name`), or a folder.
        config: One of its configurations, if it has several.

    Raises:
        ConfigurationError: It cannot be loaded, or has no training split.
    """
    from datasets import load_dataset

    from finetune_common.data.arrow_files import table_of

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = load_dataset(name, config)
    except Exception as error:  # any failure: offline cache, network or configuration
        told = " ".join(str(error).partition("Example of usage")[0].split())  # it lists the configurations
        reason = told[:200] or type(error).__name__
        raise refusal(
            f"--dataset {name}",
            f"cannot be loaded ({reason}): check name and --dataset-config, or run 'glue-harness prepare' "
            "where there is a network",
        ) from None
    if "train" not in loaded:
        raise refusal(f"--dataset {name}", f"has no train split, but {', '.join(map(str, loaded))}")
    tables = {}
    for split, names in (("train", ("train",)), ("validation", VALIDATION), ("test", ("test",))):
        name_there = next((other for other in names if other in loaded), None)
        if name_there is not None:
            rows = loaded[name_there]
            tables[split] = table_of(f"{name} {name_there}", rows.with_format("arrow")[:])
            tables[split].classes |= _classes(rows.features)
    return tables


def _classes(features: Any) -> dict[str, tuple[str, ...]]:
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(feature.names) for name, feature in inner.items() if getattr(feature, "names", None)}
