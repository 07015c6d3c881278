"""Common names of special tokens, for tokenizers whose files do not mark the special ones."""

# Special in any tokenizer that has them as added tokens, even unmarked: a text must not end a turn of a chat.
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
    "<start_of_turn>",
    "<end_of_turn>",
)
# The first name that a vocabulary holds is the token of the role.
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
UNKNOWN_NAMES = ("[UNK]", "<unk>", "<|unk|>", "UNK")
OTHER_NAMES = ("<s>", "<bos>", "[BOS]", "[CLS]", "[MASK]", "<mask>")
SPECIAL_NAMES = (*CHAT_MARKERS, *EOS_NAMES, *PAD_NAMES, *UNKNOWN_NAMES, *OTHER_NAMES)
