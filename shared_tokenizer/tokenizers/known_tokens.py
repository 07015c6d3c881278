"""Names that tokenizers commonly give to their special tokens, for those that do not say which are special."""

# Special wherever they are added tokens, even if not marked so: a text must not be able to end a turn of a chat.
CHAT_MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "[INST]",
    "[/INST]",
)
# The first one that a vocabulary holds is taken.
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
UNKNOWN_NAMES = ("[UNK]", "<unk>", "<|unk|>", "UNK")
OTHER_NAMES = ("<s>", "<bos>", "[BOS]", "[CLS]", "[MASK]", "<mask>")
SPECIAL_NAMES = (*CHAT_MARKERS, *EOS_NAMES, *PAD_NAMES, *UNKNOWN_NAMES, *OTHER_NAMES)
