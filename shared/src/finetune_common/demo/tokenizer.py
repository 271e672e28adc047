"""A word-level, BERT-style tokenizer over the demo's own vocabulary, made in memory."""

from typing import TYPE_CHECKING

from finetune_common.demo.lexicon import words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["demo_tokenizer", "demo_vocabulary"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def demo_vocabulary() -> dict[str, int]:
    """Return word → id: the five special tokens of BERT, then every word of the demo tasks.

    Examples:
        >>> demo_vocabulary()["[PAD]"]
        0
    """
    return {word: index for index, word in enumerate((*_SPECIAL, *words()))}


def demo_tokenizer() -> "PreTrainedTokenizerFast":
    """Return the tokenizer: lower case, one id per word, `[CLS] a [SEP] b [SEP]` with token types 0 and 1.

    Examples:
        >>> demo_tokenizer().tokenize("The dog sleeps.")
        ['the', 'dog', 'sleeps', '.']
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = demo_vocabulary()
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=128,
    )
