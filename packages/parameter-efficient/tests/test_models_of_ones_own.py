"""What few models have: weights that are shared or computed, shared blocks, statistics, flat heads."""

import copy
import json

import peft
import pytest
import torch
import transformers
import zoo
from models_of_ones_own import WIDTH, Attention, Block, Flat, Nested, WithStatistics, made, outputs, texts
from small_transformers import COMMON, SPECIAL, batch, classifier, disturb, logits
from torch import nn
from torch.nn.utils import parametrizations

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    HeadOnly,
    LoRA,
    PrefixTuning,
    activate,
    adapt,
    combine,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
    trainable_parameters,
)
from parameter_efficient.anatomy import Anatomy


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def tied_llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**COMMON | {"bos_token_id": 0, "eos_token_id": 2}, tie_word_embeddings=True)
    )


def tied_queries() -> nn.Module:
    model = Nested()
    model.body.blocks[1].attention.wq.weight = model.body.blocks[0].attention.wq.weight
    return model


def computed(parametrize):
    def make() -> nn.Module:
        model = Nested()
        for block in model.body.blocks:
            for matrix in (block.attention.wq, block.attention.wv, block.inner.up, block.inner.down):
                parametrize(matrix)
        return model

    return make


FOREIGN = {
    "head tied to the embeddings": (tied_llama, ["lm_head"], r"embed_tokens\.weight is the same parameter"),
    "tied across layers": (tied_queries, ["q"], r"blocks\.1\.attention\.wq\.weight is the same parameter"),
    "weight norm": (computed(parametrizations.weight_norm), ["q"], "computed from other parameters"),
    "spectral norm": (computed(parametrizations.spectral_norm), ["q"], "computed from other parameters"),
    "orthogonal": (computed(parametrizations.orthogonal), ["q"], "computed from other parameters"),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("case", FOREIGN)
def test_a_weight_that_is_not_the_matrix_s_own_is_not_written_to(case):
    make, targets, message = FOREIGN[case]
    model = made(make)
    disturb(adapt(model, LoRA(rank=2, targets=targets, head="none"), example=texts()))
    adapted, weights = outputs(model), state(model)
    with pytest.raises(ConfigurationError, match=f"cannot be merged: .*{message}.*keep the adaptation"):
        merge(model)
    assert torch.equal(outputs(model), adapted)
    assert equal(state(model), weights)
    fresh = made(make)
    weights = state(fresh)
    with pytest.raises(ConfigurationError, match=f"init='pissa' changes the base weights.*{message}"):
        adapt(fresh, LoRA(rank=2, targets=targets, head="none", init="pissa"), example=texts())
    assert equal(state(fresh), weights)


def test_a_matrix_beside_tied_ones_merges():
    model = disturb(adapt(made(tied_queries), LoRA(rank=2, targets=["v", "o"]), example=texts()))
    adapted = outputs(model)
    torch.testing.assert_close(outputs(merge(model)), adapted, atol=1e-5, rtol=1e-5)


def one_block_twice() -> nn.Module:
    block = Block()
    return Nested(nn.ModuleList([block, block]))


def one_inner_block() -> nn.Module:
    model = Nested()
    model.body.blocks[1].inner = model.body.blocks[0].inner
    return model


@pytest.mark.parametrize(
    ("make", "config", "numbers"),
    [
        (one_block_twice, LoRA(rank=2, targets=["q", "v"]), 2 * 2 * 2 * WIDTH),
        (one_block_twice, BottleneckAdapter(bottleneck=2), 2 * 2 * WIDTH + 2 + WIDTH + 2 * WIDTH),
        (one_inner_block, LoRA(rank=2, targets=["ffn_in", "ffn_out"]), 2 * 2 * (WIDTH + 64)),
        (one_inner_block, BitFit(biases=["ffn_in", "ffn_out"]), 64 + WIDTH),
        (
            one_inner_block,
            BottleneckAdapter(bottleneck=2, position="attention"),
            2 * (2 * 2 * WIDTH + 2 + WIDTH + 2 * WIDTH),
        ),
    ],
)
def test_what_layers_share_is_adapted_once(make, config, numbers, tmp_path):
    model = made(make)
    base, weights = outputs(model), state(model)
    disturb(adapt(model, config, example=texts()))
    head = WIDTH * 3 + 3
    assert trainable_parameters(model).trainable == numbers + head
    save_adaptation(model, tmp_path)
    assert torch.equal(outputs(load_adaptation(made(make), tmp_path, example=texts())), outputs(model))
    if isinstance(config, LoRA):
        adapted = outputs(model)
        torch.testing.assert_close(outputs(merge(model)), adapted, atol=1e-5, rtol=1e-5)
    remove(model)
    assert equal(state(model), weights)
    assert torch.equal(outputs(model), base)


class Kernel(nn.Module):
    """A linear map that names its matrix otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = WIDTH
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH) / 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel


def kernels() -> nn.Module:
    model = Nested()
    for block in model.body.blocks:
        for name in ("wq", "wk", "wv", "wo"):
            setattr(block.attention, name, Kernel())
    return model


class OfFixedLength(Nested):
    """Its keys have to be as many as its inputs."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.body.blocks:
            block.attention = OfInputsLength()


class OfInputsLength(Attention):
    """Takes no prefix."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (w(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return self.wo(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def of_torch() -> nn.Module:
    return Flat(nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True) for _ in range(2)))


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (OfFixedLength, PrefixTuning(), "a prefix does not work with OfFixedLength"),
        (one_inner_block, BottleneckAdapter(), "layers of Nested share this sub-layer"),
        (kernels, LoRA(), "peft cannot adapt Nested: Target module Kernel"),
        (kernels, LoRA(init="pissa"), "quantised or in no `weight`"),
        (of_torch, LoRA(targets=["self_attn"]), "weights of nn.MultiheadAttention anew in every pass"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line_and_the_model_left_alone(make, config, message):
    model = made(make)
    base, weights = outputs(model), state(model)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigurationError, match=message) as refusal:
        adapt(model, config, example=texts())
    assert "\n" not in str(refusal.value)
    assert equal(state(model), weights)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(outputs(model), base)


def test_a_prefix_needs_no_configuration(tmp_path):
    model = made(Nested)
    base = outputs(model)
    disturb(adapt(model, PrefixTuning(), example=texts()))
    save_adaptation(model, tmp_path)
    assert not torch.equal(outputs(model), base)
    assert torch.equal(outputs(load_adaptation(made(Nested), tmp_path, example=texts())), outputs(model))
    assert torch.equal(outputs(remove(model)), base)


def test_a_compiled_model_is_refused_by_that_name():
    model = made(Nested)
    compiled = torch.compile(model, backend="eager")
    for attempt in (lambda: adapt(compiled, LoRA(), example=texts()), lambda: save_adaptation(compiled, "x")):
        with pytest.raises(ConfigurationError, match=r"this model is compiled: pass the model itself"):
            attempt()
    adapt(model, LoRA(), example=texts())


@pytest.mark.parametrize("init", ["kaiming", "random", "pissa"])
def test_a_table_of_words_takes_low_ranks(init, tmp_path):
    config = LoRA(rank=2, targets=["words"], init=init)
    model = made(Nested)
    base = outputs(model)
    adapt(model, config, example=texts())
    assert torch.allclose(outputs(model), base, atol=1e-6) == (init != "random")
    adapted = outputs(disturb(model))
    save_adaptation(model, tmp_path)
    assert torch.equal(outputs(load_adaptation(made(Nested), tmp_path, example=texts())), adapted)
    torch.testing.assert_close(outputs(merge(model)), adapted, atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs(remove(model)), base)


class TokensFirst(Nested):
    """Reads (tokens, rows)."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids.T)


@pytest.mark.parametrize(
    ("make", "shape"), [(Nested, (s, 9)) for s in (2, 9, 16)] + [(Nested, (40, 32)), (TokensFirst, (9, 4))]
)
def test_an_example_may_have_any_number_of_rows(make, shape):
    model = made(make)
    [few] = Anatomy(model, "encoder", texts(*((1, 9) if make is Nested else (9, 1)))).architectures
    [many] = Anatomy(model, "encoder", texts(*shape)).architectures
    assert [layer.roles for layer in many.layers] == [layer.roles for layer in few.layers]
    adapt(model, LoRA(), example=texts(*shape))


def test_an_example_of_one_token_is_too_short_and_one_of_small_images_is_not():
    with pytest.raises(ConfigurationError, match="it sees a single token: pass example= with two or more"):
        adapt(made(Nested), LoRA(), example=texts(4, 1))
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]
    )
    model = transformers.SegformerForImageClassification(config)
    adapt(model, LoRA(), example={"pixel_values": torch.randn(2, 3, 64, 64)})


def train(model: nn.Module, seed: int) -> nn.Module:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        ids = torch.randint(1, 50, (8, 9), generator=torch.Generator().manual_seed(10 * seed + step))
        optimizer.zero_grad()
        model(input_ids=ids).square().sum().backward()
        optimizer.step()
    return model.eval()


def test_statistics_that_training_moves_are_saved_restored_and_switched(tmp_path):
    model = made(WithStatistics)
    weights = state(model)
    train(adapt(model, LoRA(rank=2), name="one", example=texts()), 1)
    first, moved = outputs(model), state(model)
    assert not torch.equal(moved["last.running_mean"], weights["last.running_mean"])
    assert not torch.equal(moved["body.words.2.running_var"], weights["body.words.2.running_var"])
    save_adaptation(model, tmp_path / "one")
    train(adapt(model, HeadOnly(), name="two", example=texts()), 2)
    second = outputs(model)
    assert torch.equal(outputs(activate(model, "one")), first)
    assert torch.equal(outputs(activate(model, "two")), second)
    assert equal(state(activate(model, None)), weights)
    assert torch.equal(
        outputs(load_adaptation(made(WithStatistics), tmp_path / "one", example=texts())), first
    )
    assert equal(state(remove(model)), weights)


def test_a_sum_of_one_has_its_statistics():
    model = classifier("bert")
    model.classifier = nn.Sequential(model.classifier, nn.BatchNorm1d(2))
    adapt(model, LoRA(rank=2), name="one").train()
    for _ in range(3):
        model(**batch()).logits.square().sum().backward()
    first = logits(model.eval())
    assert not torch.equal(first, logits(activate(model, None)))
    combine(model, {"one": 1.0}, "same")
    torch.testing.assert_close(logits(model), first, atol=1e-5, rtol=1e-5)
    assert "classifier.1.running_mean" not in trained(model)


def test_peft_reads_statistics_and_so_does_this_package(tmp_path):
    model = train(adapt(made(WithStatistics), LoRA(rank=2), example=texts()), 1)
    save_adaptation(model, tmp_path, format="peft")
    theirs = peft.PeftModel.from_pretrained(made(WithStatistics), str(tmp_path)).eval()
    torch.testing.assert_close(outputs(theirs), outputs(model))
    again = load_adaptation(made(WithStatistics), tmp_path, example=texts())
    torch.testing.assert_close(outputs(again.eval()), outputs(model))
    weights = state(made(WithStatistics))
    assert equal(state(remove(again)), weights)


@pytest.mark.parametrize("also", [(), ("norm1",)])
def test_feed_forward_matrices_that_are_computed_train_by_what_they_are_computed_from(also, tmp_path):
    make = computed(parametrizations.weight_norm)
    model = adapt(made(make), FFNTuning(also_train=also), example=texts())
    inner = {name for name in made(make).state_dict() if ".inner." in name}
    assert {name for name in trained(model) if ".inner." in name} == inner
    assert len([name for name in inner if "original" in name]) == 2 * 2 * 2
    save_adaptation(disturb(model), tmp_path)
    again = load_adaptation(made(make), tmp_path, example=texts())
    assert torch.equal(outputs(again), outputs(model))


class Convolutional(nn.Module):
    """No blocks at all."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(50, 8), nn.Conv1d(8, 8, 3)
        self.second, self.classifier = nn.Conv1d(8, 8, 3), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.first(self.words(input_ids).mT).relu()
        return self.classifier(self.second(x).relu().mean(-1))


CLASSIFIER = {"classifier.weight", "classifier.bias"}
NORM = {"norm.weight", "norm.bias"}
FLAT = {
    "list": (Flat, HeadOnly(), CLASSIFIER | NORM),
    "list, low rank": (Flat, LoRA(), CLASSIFIER | NORM),
    "list, adapters": (Flat, BottleneckAdapter(), CLASSIFIER | NORM),
    "list, no head": (Flat, LoRA(head="none"), set()),
    "by names": (lambda: Flat(nn.Sequential(Block(), Block())), LoRA(targets=["wq"]), CLASSIFIER),
    "torch's own layers": (of_torch, HeadOnly(), CLASSIFIER),
    "convolutions": (Convolutional, HeadOnly(), CLASSIFIER),
    "convolutions by names": (Convolutional, LoRA(targets=["first", "second"]), CLASSIFIER),
    "body and head": (Nested, HeadOnly(), {"head.weight", "head.bias"}),
}


@pytest.mark.parametrize("case", FLAT)
def test_the_head_is_what_lies_behind_the_blocks_or_else_the_last_matrix(case):
    make, config, head = FLAT[case]
    model = adapt(made(make), config, example=texts())
    added = {name for name in trained(model) if "lora" in name or "adapter" in name}
    assert {name for name in trained(model) if ".blocks." not in f".{name}"} - added == head
    assert (trained(model) == added) == (not head)


def test_a_file_of_a_version_that_found_no_head_still_loads(tmp_path):
    """It has nothing of the head, which is then the base's."""
    model = disturb(adapt(made(Flat), LoRA(rank=2, head="none"), example=texts()))
    save_adaptation(model, tmp_path)
    file = tmp_path / "adaptation.json"
    described = json.loads(file.read_text())
    described["config"]["head"] = None
    file.write_text(json.dumps(described))
    with pytest.raises(ConfigurationError, match="33 tensors of other names or shapes than the 37"):
        load_adaptation(made(Flat), tmp_path, example=texts())
    file.write_text(json.dumps(described | {"schema": 2}))
    again = load_adaptation(made(Flat), tmp_path, example=texts())
    assert torch.equal(outputs(again), outputs(model))
    assert trained(again) == trained(model)
    save_adaptation(again, tmp_path)


class Speaker(nn.Module):
    """A language model of one's own, with its vocabulary tied or not, and a head beside it."""

    def __init__(self, tied: bool, labels: int = 2) -> None:
        super().__init__()
        self.body, self.vocabulary = Flat(None, nn.Identity()), nn.Linear(WIDTH, 50, bias=False)
        self.kinds, self.beside = nn.Embedding(labels, WIDTH), nn.Linear(WIDTH, labels)
        if tied:
            self.vocabulary.weight = self.body.words.weight

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.body(input_ids) + self.kinds(torch.zeros_like(input_ids))[:, 0]
        return {"logits": self.vocabulary(states), "labels": self.beside(states)}


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_of_ones_own_stays_frozen_tied_or_not_and_a_head_beside_it_trains(tied):
    """A head for as many labels as there are kinds of words is no vocabulary, though the shapes agree."""
    model = adapt(made(lambda: Speaker(tied)), LoRA(rank=2), example=texts())
    heads = {name for name in trained(model) if "lora" not in name}
    assert "beside.weight" in heads
    assert not {"vocabulary.weight", "body.words.weight"} & heads
    every = adapt(made(lambda: Speaker(tied)), LoRA(rank=2, head="train"), example=texts())
    assert ("body.words.weight" if tied else "vocabulary.weight") in trained(every)


VISION = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
OUTPUTS = {
    "yolos": (
        transformers.YolosForObjectDetection,
        transformers.YolosConfig(**VISION, patch_size=8, image_size=[32, 32], num_detection_tokens=5),
        {"pixel_values": torch.randn(2, 3, 32, 32)},
        ("bbox_predictor.", "class_labels_classifier."),
    ),
    "vit": (
        transformers.ViTForMaskedImageModeling,
        transformers.ViTConfig(**VISION, patch_size=8, image_size=32, encoder_stride=8),
        {"pixel_values": torch.randn(2, 3, 32, 32)},
        ("decoder.",),
    ),
    "gpt2": (
        transformers.GPT2DoubleHeadsModel,
        transformers.GPT2Config(**SPECIAL, n_embd=16, n_layer=2, n_head=2),
        {"input_ids": texts(2, 3, 9)["input_ids"]},
        ("multiple_choice_head.",),
    ),
    "bert": (
        transformers.BertForPreTraining,
        transformers.BertConfig(**COMMON),
        texts(),
        ("cls.seq_relationship.", "bert.pooler."),
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_output_has_its_head_whatever_its_name_but_the_vocabulary(kind):
    """Heads as in the models' source; what feeds the vocabulary alone stays frozen with it."""
    cls, config, example, heads = OUTPUTS[kind]
    model = adapt(cls(config), LoRA(rank=2), example=example)
    expected = {name for name, _ in model.named_parameters() if name.startswith(heads)}
    assert expected
    assert {name for name in trained(model) if "lora" not in name} == expected


class HeadNamedOut(nn.Module):
    """Its head's name ends that of a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out, self.dropout = Flat(None, nn.Identity()), nn.Linear(WIDTH, 3), nn.Dropout(0.1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(self.body(input_ids)))


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (HeadNamedOut, LoRA(rank=2), r"it would choose \S*dropout for 'out'"),
        (
            tied_llama,
            LoRA(rank=2, also_train=["embed_tokens"]),
            r"embed_tokens would be copied, and lm_head\.weight",
        ),
        (
            computed(parametrizations.weight_norm),
            LoRA(rank=2, targets=["o"], also_train=["wq"]),
            "computed from other parameters",
        ),
    ],
)
def test_what_peft_would_load_otherwise_is_not_written(make, config, message, tmp_path):
    model = disturb(adapt(made(make), config, example=texts()))
    with pytest.raises(ConfigurationError, match=f"{message}.*save without format='peft'"):
        save_adaptation(model, tmp_path / "kept", format="peft")
    assert not (tmp_path / "kept").exists()
    save_adaptation(model, tmp_path / "own")
    assert torch.equal(
        outputs(load_adaptation(made(make), tmp_path / "own", example=texts())), outputs(model)
    )


def test_a_head_that_is_not_found_is_said():
    """This class of transformers names no base model, and has no blocks."""
    model = zoo.build("hgnet_v2", transformers.HGNetV2ForImageClassification)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]
    with pytest.warns(
        UserWarning, match="no head of HGNetV2ForImageClassification was found, so none trains"
    ):
        adapt(model, LoRA(targets=[last]))
    remove(model)
    adapt(model, LoRA(targets=[last], head="none"))
    remove(model)
    adapt(model, LoRA(targets=[last], also_train=["fc"]))
