# Licensed under the Apache License, Version 2.0.
"""From the inputs and the output of the model to one of the `LOCAL_LOSSES`."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from ..evaluation.sentences import split_sentences
from ..modeling_tier import TierModel, TierOutput
from ..processing_tier import TierProcessor
from .local_losses import LOCAL_LOSSES
from .options import RegulariserOptions
from .pairs_of_batch import Pairs


PREFIX = "sentence_"  # of the inputs that are those of sentences
EMBEDDINGS = ("text_embeds", "image_embeds", "token_embeds", "patch_embeds")  # of a TierOutput
# Of the largest tensor over texts and images: 256 MiB, of which its gradient needs several at a time. What has more is
# computed in blocks, and these twice: many small ones leave a GPU idle (docs/study.md, "What each costs").
MAX_VALUES = 2**26


@dataclass
class LocalLoss:
    """A local loss of one batch, as [`TierModel`] takes it."""

    name: str
    """One of `LOCAL_LOSSES`."""
    weight: float
    input_ids: torch.Tensor
    """(N, T), the model's input."""
    attention_mask: torch.Tensor | None
    """(N, T)"""
    sentences: dict[str, torch.Tensor]
    """Of the losses over sentences, as [`sentence_inputs`] makes them, without the prefix."""

    @classmethod
    def of_batch(
        cls, options: RegulariserOptions, batch: dict[str, torch.Tensor], device: torch.device, scale: float = 1.0
    ) -> "LocalLoss | None":
        """
        That of the options, if any, on a device, its weight times `scale`; it takes the inputs of sentences out of the
        batch.
        """
        if options.local_loss is None:
            return None
        sentences = {name.removeprefix(PREFIX): batch.pop(name) for name in list(batch) if name.startswith(PREFIX)}
        sentences = {name: value.to(device, non_blocking=True) for name, value in sentences.items()}
        input_ids, mask = batch["input_ids"].to(device, non_blocking=True), batch.get("attention_mask")
        mask = mask if mask is None else mask.to(device, non_blocking=True)
        return cls(options.local_loss, options.local_weight * scale, input_ids, mask, sentences)

    def __call__(self, model: TierModel, out: TierOutput) -> torch.Tensor:
        """The weighted loss: a scalar in float32, in mixed precision too."""
        more, sentences = {}, dict(self.sentences)
        if sentences:
            more["owners"] = sentences.pop("owners")
            more["sentences"] = normalize(model.encode_text(**sentences).embeds.float(), dim=-1)
        mask = torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask
        mask = mask.bool()
        special = torch.tensor(model.config.special_token_ids).to(self.input_ids.device, non_blocking=True)
        content = mask & ~torch.isin(self.input_ids, special)
        content = torch.where(content.any(dim=1, keepdim=True), content, mask)  # a text may hold unknown words alone
        with torch.autocast(self.input_ids.device.type, enabled=False):
            embeds = (out[name].float() for name in EMBEDDINGS)
            pairs = Pairs(*embeds, None, mask, content, model.logit_scale.float().exp(), **more)
            pairs.max_values = MAX_VALUES
            return LOCAL_LOSSES[self.name](pairs, self.weight)


def sentence_inputs(texts: list[str], processor: TierProcessor) -> dict[str, torch.Tensor]:
    """
    The sentences of N texts as inputs of the text encoder, (S, T'), under the processor's names with `sentence_`
    before each, and `sentence_owners` (S,): the row of the text that each is of. A text without a sentence is one.
    """
    split = [split_sentences(text) or [text] for text in texts]
    inputs = processor(text=[sentence for own in split for sentence in own])
    owners = torch.repeat_interleave(torch.tensor([len(own) for own in split]))
    return {PREFIX + name: value for name, value in inputs.items()} | {PREFIX + "owners": owners}
