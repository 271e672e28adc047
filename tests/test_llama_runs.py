"""LoRA, QLoRA and LLM.int8 on a small Llama-like folder: cut off, continued, predicted, exported, merged."""

import warnings

import pytest
import torch
import transformers
from interrupted import cut_off_and_continued

pytest.importorskip("bitsandbytes")

pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is drawn anew:UserWarning"),
]

WAYS = {
    "lora": ({"name": "lora", "rank": 4, "targets": ["q", "v", "ffn_in"]}, {"name": "adamw", "lr": 5e-3}),
    "qlora": ({"name": "qlora", "rank": 4}, {"name": "adamw-8bit", "lr": 5e-3, "paged": True}),
    "int8": ({"name": "qlora", "rank": 64, "quant_type": "int8"}, {"name": "lion-8bit", "lr": 1e-3}),
}
"""At rank 64 LoRA's matrices have 4,096 elements: from there on state is in 8 bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from finetune_common.demo import demo_tokenizer

    path, tokenizer = tmp_path_factory.mktemp("llama"), demo_tokenizer()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=128, pad_token_id=tokenizer.pad_token_id, **sizes
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_on_a_llama_is_cut_off_continued_predicted_and_exported(way, folder, tmp_path, monkeypatch):
    from glue_harness import open_run
    from glue_harness.export import export

    adaptation, optimizer = WAYS[way]
    changes = {"model": str(folder), "max_length": 32, "adaptation": adaptation, "optimizer": optimizer}
    cut_off_and_continued(tmp_path, monkeypatch, **changes)
    texts = [("a dog sleeps", "an animal sleeps"), ("a cat runs", "nobody moves")]
    said = open_run(tmp_path / "cut").predict(texts)
    assert [row["label"] for row in said]
    loader = export(tmp_path / "cut", tmp_path / "exported")
    if way == "lora":
        assert loader is None
        export(tmp_path / "cut", tmp_path / "merged", merge=True)
        kind = transformers.AutoModelForSequenceClassification
        for name in ("exported", "merged"):
            model = kind.from_pretrained(tmp_path / name).eval()
            tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / name)(
                *map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                scores = model(**tokens).logits.softmax(-1)
            expected = [list(row["scores"].values()) for row in said]
            torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    else:
        assert loader is not None
        with pytest.raises(Exception, match="export it without --merge"):
            export(tmp_path / "cut", tmp_path / "merged", merge=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert open_run(tmp_path / "whole").predict(texts) == said
