"""A dataset of the hub, or a local folder that `datasets` reads, as tables."""

import warnings
from typing import TYPE_CHECKING

from finetune_common.data.messages import refusal

if TYPE_CHECKING:
    from datasets import Features

    from finetune_common.data.tables import Table

__all__ = ["DatasetTables", "read_dataset"]

VALIDATION = ("validation", "valid", "dev", "val")
"""Names that datasets use for validation rows."""


class DatasetTables(dict[str, "Table"]):
    """The tables of a dataset's splits: `train`, `validation`, `test`.

    Attributes:
        unused: The dataset's other splits → why they are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unused: dict[str, str] = {}


def read_dataset(name: str, config: str | None = None) -> DatasetTables:
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
            loaded = load_dataset(name, config)
    except Exception as error:  # any failure: offline cache, network or configuration
        # The example of usage comes after the list of configurations, which the user needs.
        text = " ".join(str(error).partition("Example of usage")[0].split())
        reason = text[:200] or type(error).__name__
        raise refusal(
            f"--dataset {name}",
            f"cannot be loaded ({reason}): check name and --dataset-config, or run 'glue-harness prepare' "
            "where there is a network",
        ) from None
    if "train" not in loaded:
        raise refusal(f"--dataset {name}", f"has no train split, but {', '.join(map(str, loaded))}")
    tables = DatasetTables()
    unused = dict.fromkeys(map(str, loaded), "only train, validation and test are read")
    for split, names in (("train", ("train",)), ("validation", VALIDATION), ("test", ("test",))):
        present = next((other for other in names if other in loaded), None)
        if present is not None:
            rows = loaded[present]
            del unused[present]
            tables[split] = table_of(f"{name} {present}", rows.with_format("arrow")[:])
            tables[split].classes |= _classes(rows.features)
    tables.unused = unused
    return tables


def _classes(features: "Features") -> dict[str, tuple[str, ...]]:
    """Return the class names of columns that hold classes or lists of classes."""
    names = {
        column: getattr(getattr(feature, "feature", feature), "names", None)
        for column, feature in features.items()
    }
    return {column: tuple(classes) for column, classes in names.items() if classes}
