"""A folder that transformers loads, made from a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, cast

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from finetune_common.slots import Portable
from glue_harness.files import atomic_folder
from glue_harness.run.assembly import Run, base_model, open_run, read_config
from glue_harness.run.card import card_of
from glue_harness.run.digests import write_digests
from glue_harness.run.methods import holder
from glue_harness.run.records import ADAPTER, read_result
from glue_harness.run.trained import merged_model, write_model

__all__ = ["export", "push"]

CODE = "modeling_adapted"

LOADER = """# Loads this folder's model: a {model} with what the adaptation {method!r} trained.
# transformers runs this file only with trust_remote_code=True.

from pathlib import Path

from transformers import {config}, {model}

try:
    from finetune_common.slots import find
except ImportError:
    raise ImportError("this model needs the packages {package} and finetune-common: install them") from None


class AdaptedConfig({config}):
    model_type = "adapted-{kind}"  # a separate name, so that nothing loads the model without its adaptation


class AdaptedModel({model}):
    config_class = AdaptedConfig

    @classmethod
    def from_pretrained(cls, folder, *args, **options):
        place = Path(folder)
        if not place.is_dir():
            from huggingface_hub import snapshot_download

            wanted = dict(revision=options.get("revision"), allow_patterns="{adapter}/*")
            place = Path(snapshot_download(folder, **wanted))
        method = find("adaptation", {method!r})
        base = {model}.from_pretrained(folder, *args, **options)
        return method(method.Options(**{options!r})).load(base, place / "{adapter}").eval()
"""
"""The code file in a folder whose weights do not contain the adaptation."""


def export(folder: Path, target: Path, merge: bool = False, task: str | None = None) -> Path | None:
    """Write a run's model into a new folder, with everything needed to load it.

    An adaptation that merges exactly is merged into the weights; its trained part is also in `adapter/`. If
    it does not merge, the folder has the base model's weights, `adapter/` and code that applies it:
    transformers then loads the folder with `trust_remote_code=True`, and refuses it otherwise.

    Args:
        folder: The run's folder.
        target: The new folder.
        merge: Write only a plain model, without `adapter/`.
        task: Which task, if the run learned several.

    Returns:
        The code file that transformers must trust, None if there is none.

    Raises:
        ConfigurationError: No run, a folder that is not empty, or an adaptation that cannot be exported so.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{target}: already exists: give a new or an empty folder")
    run = open_run(folder, task)
    name = read_config(folder).chosen_task(task, folder)
    apart = hasattr(run.methods.adaptation, "save") and not merge
    result = read_result(folder, name) if (folder / "result.json").exists() else None
    with atomic_folder(target) as unfinished:
        if apart:
            _write_adapter(run, folder / ADAPTER / name, unfinished / ADAPTER)
        if (model := merged_model(run)) is not None:
            write_model(run, model, unfinished, _card(run, result, "whole"))
            return None
        if not apart:
            raise ConfigurationError(
                f"{folder}: the adaptation {run.config.adaptation['name']!r} cannot be merged into a "
                f"{type(run.model).__name__}: export it without --merge"
            )
        run.model = base_model(run)
        write_model(run, run.model, unfinished, _card(run, result, "code"))
        _write_loader(run, unfinished)
    return target / f"{CODE}.py"


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported folder to the model hub, with the account that is logged in.

    Args:
        folder: From `export`.
        name: `model`, or `organisation/model`; created if missing.
        private: Whether only its owner can see a new one.

    Returns:
        Its full name.

    Raises:
        ConfigurationError: Nobody is logged in, the name cannot be used, or there is no network.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(
            f"--push-to-hub {name}: {reason}: log in with 'hf auth login'; the model is in {folder}"
        ) from None
    return repository.repo_id


def _card(run: Run, result: JsonObject | None, form: Literal["whole", "code"]) -> str:
    assert run.task is not None
    if result is None:
        return f"# {run.config.model}, fine-tuned on {run.task.name}\n\nThe run has not ended.\n"
    return card_of(result, run.task, form)


def _write_adapter(run: Run, adapter: Path, target: Path) -> None:
    """Write the adaptation's trained part, from a finished run or its newest checkpoint."""
    if not run.attached:
        shutil.copytree(adapter, target)
        return
    target.mkdir()
    cast("Portable", run.methods.adaptation).save(run.model, target)
    write_digests(target)


def _write_loader(run: Run, folder: Path) -> None:
    """Write the code file that applies the adaptation, and name it in the configuration."""
    options = dict(run.config.adaptation)
    method = options.pop("name")
    package = holder("adaptation", method)
    config: Any = run.model.config
    names = {"model": type(run.model).__name__, "config": type(config).__name__, "adapter": ADAPTER}
    names |= {"package": package.name if package else method, "kind": config.model_type}
    code = LOADER.format(**names, method=method, options=options)
    (folder / f"{CODE}.py").write_text(code, encoding="utf-8")
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content |= {"model_type": f"adapted-{names['kind']}", "architectures": ["AdaptedModel"]}
    kinds = {"AutoConfig": "AdaptedConfig", "AutoModelForSequenceClassification": "AdaptedModel"}
    content["auto_map"] = {auto: f"{CODE}.{class_name}" for auto, class_name in kinds.items()}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_digests(folder)
