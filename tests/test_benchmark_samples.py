"""Images and graphs of the published works are read from folders; what is missing is said in one line."""

import gzip
import importlib
from pathlib import Path

import pytest
import torch
import yaml

from finetune_common.errors import ConfigurationError
from reproduce.catalogue import BENCHMARKS, find
from reproduce.preflight import preflight


@pytest.fixture
def samples(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "gact")
    return importlib.import_module("samples")


def test_images_are_taken_from_the_classes_in_turn(samples, tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    for name, colour in {"a": (255, 0, 0), "b": (0, 0, 255)}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            image.new("RGB", (6 + number, 4), colour).save(tmp_path / "train" / name / f"{number}.png")
    monkeypatch.setenv("PICTURES", str(tmp_path))
    data = samples.load({"images": "${PICTURES}", "rows": 4, "size": 2, "from": "made here"})
    assert data.x.shape == (4, 3, 2, 2)
    assert data.y.tolist() == [0, 1, 0, 1]
    assert data.classes == 2
    red, blue = data.x[0, :, 0, 0], data.x[1, :, 0, 0]
    torch.testing.assert_close(red, torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    torch.testing.assert_close(blue, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225]))


def test_a_graph_is_read_with_its_split(samples, tmp_path):
    files = {
        "raw/node-feat": "0.5,1\n2,3\n4,5\n",
        "raw/node-label": "0\n2\n1\n",
        "raw/edge": "0,1\n1,2\n",
        "split/time/train": "0\n1\n",
        "split/time/test": "2\n",
    }
    for name, text in files.items():
        file = tmp_path / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))
    data = samples.load({"graph": str(tmp_path), "from": "made here"})
    assert data.x.tolist() == [[0.5, 1], [2, 3], [4, 5]]
    assert data.y.tolist() == [0, 2, 1]
    assert data.edges.tolist() == [[0, 1], [1, 2]]
    assert data.classes == 3
    assert data.train.tolist() == [0, 1]
    assert data.test.tolist() == [2]


def test_a_folder_that_is_missing_is_told_with_where_it_is_had(samples, tmp_path, monkeypatch):
    spec = yaml.safe_load(Path(BENCHMARKS / "gact" / "images-and-graphs.yaml").read_text(encoding="utf-8"))
    for variable in ("IMAGENET_DIR", "OGBN_ARXIV_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    for net, missing in {"ResNet-50": "it has no train/", "GCN": "it has no raw/edge.csv.gz"}.items():
        with pytest.raises(ConfigurationError, match=missing):
            samples.load(spec["nets"][net]["data"])
    monkeypatch.delenv("IMAGENET_DIR")
    with pytest.raises(ConfigurationError) as refused:
        preflight(find("gact.images-and-graphs"), tmp_path)
    told = str(refused.value)
    assert told.count("IMAGENET_DIR=DIR is not given: it is that of ILSVRC 2012 from image-net.org") == 1
    assert "OGBN" not in told
    assert "\n" not in told
