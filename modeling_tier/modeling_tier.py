# Licensed under the Apache License, Version 2.0.
"""TierModel: two encoders, one joint space, and the contrastive loss plus the text-image entropy regulariser."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import ModelOutput, can_return_tuple, logging

from .collectives_tier import gather_rows, mean_over_processes, sizes_of_processes
from .configuration_tier import TERMS, TierConfig, check_option_names
from .cosines_tier import l2_normalize
from .encoders_tier import (
    LAST_POOLED_TEXT,
    build_encoder,
    check_pixels,
    encoder_width,
    global_token_position,
    last_token_position,
    max_text_length,
    pad_to_full_length,
    patch_grid,
    unreached_parameters,
    warn_if_clipped,
    with_pooled_norm,
)
from .entropy_tier import text_image_entropy


logger = logging.get_logger(__name__)

MAP_KINDS = ("cosine", "contribution")


@dataclass
class TierOutput(ModelOutput):
    """
    Output of [`TierModel`], for N images and M texts (N = M pairs where a loss is asked for).

    Args:
        loss (`torch.Tensor`, scalar, returned when `return_loss` is `True`):
            `contrastive_loss + entropy_scale * (lambda_token * token_entropy + lambda_patch * patch_entropy)`, and
            further terms as [`TierConfig.term_weights`] has them.
        contrastive_loss (`torch.Tensor`, scalar, returned when `return_loss` is `True`):
            Symmetric cross-entropy over the batch, as CLIP's.
        token_entropy (`torch.Tensor`, scalar, *optional*):
            Mean entropy of a token over the patches, in nats.
        patch_entropy (`torch.Tensor`, scalar, *optional*):
            Mean entropy of a patch over the tokens, in nats.
        local_loss (`torch.Tensor`, scalar, *optional*):
            What `local_loss` of [`TierModel.forward`] added to the loss.
        logits_per_image (`torch.Tensor` of shape `(N, M)`):
            Cosines of the global embeddings times `exp(logit_scale)`, plus `logit_bias` if there is one.
        logits_per_text (`torch.Tensor` of shape `(M, N)`):
            The transpose of `logits_per_image`.
        text_embeds (`torch.Tensor` of shape `(M, D)`):
            Global text embeddings, L2-normalised.
        image_embeds (`torch.Tensor` of shape `(N, D)`):
            Global image embeddings, L2-normalised.
        token_embeds (`torch.Tensor` of shape `(M, T, D)`):
            Embeddings of the tokens by the projection of `text_embeds`, L2-normalised.
        patch_embeds (`torch.Tensor` of shape `(N, P, D)`):
            Embeddings of the patches, row by row, by the projection of `image_embeds`, L2-normalised.
        patch_weights (`torch.Tensor` of shape `(N, P)`, returned when `output_patch_weights` is `True`):
            As [`TierModel.patch_weights`] gives them: what makes a map of contributions of one of cosines.
        text_model_output (`BaseModelOutputWithPooling`):
            The text encoder's output (SigLIP's: of the text padded to full length); its `pooler_output` is the
            projected global state before normalisation.
        vision_model_output (`BaseModelOutputWithPooling`):
            The vision encoder's output; its `pooler_output` is the projected global state before normalisation.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    token_entropy: torch.Tensor | None = None
    patch_entropy: torch.Tensor | None = None
    local_loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    patch_weights: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        """Those terms of the loss, beside the contrastive one, that were computed."""
        return {name: self[name] for name in TERMS if self.get(name) is not None}

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class TierSimilarityMap(NamedTuple):
    """Maps of N pairs on the patch grid (h, w), or on the pixels if a size was asked for."""

    token_to_patch: torch.Tensor
    """`(N, T, h, w)`: each token with each patch; 0 at padding."""
    text_to_patch: torch.Tensor
    """`(N, h, w)`: the global text embedding with each patch."""


class TierEncoding(NamedTuple):
    """What an encoder and its projection make of N texts or images; no embedding is normalised."""

    embeds: torch.Tensor
    """`(N, D)`: global embeddings."""
    local_embeds: torch.Tensor
    """`(N, T, D)` of tokens or `(N, P, D)` of patches, rows of the grid from top to bottom."""
    grid: tuple[int, int] | None
    """Rows and columns (h, w) of the patches; None for texts."""
    encoder_output: BaseModelOutputWithPooling
    """The encoder's own output, with `embeds` as its `pooler_output`."""


class TierTextMLP(nn.Sequential):
    """The paper's text head: linear, GELU, layer norm, linear."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, out_features),
            nn.GELU(),
            nn.LayerNorm(out_features, eps=1e-12),
            nn.Linear(out_features, out_features),
        )


class TierOpenClipTextMLP(nn.Sequential):
    """open_clip's head over a text encoder of transformers: linear, GELU, linear, without biases."""

    def __init__(self, in_features: int, out_features: int):
        hidden_features = (in_features + out_features) // 2
        super().__init__(
            nn.Linear(in_features, hidden_features, bias=False),
            nn.GELU(),
            nn.Linear(hidden_features, out_features, bias=False),
        )


class TierVisionMLP(nn.Sequential):
    """The paper's image head: 1x1 convolution, batch norm, ReLU, 1x1 convolution, written as linear layers."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, out_features, bias=False),
            nn.BatchNorm1d(out_features),
            nn.ReLU(),
            nn.Linear(out_features, out_features),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The statistics of the batch norm are over all patches of all images, as in a convolution.
        return super().forward(hidden_states.flatten(0, 1)).unflatten(0, hidden_states.shape[:2])


class TierPreTrainedModel(PreTrainedModel):
    config: TierConfig
    base_model_prefix = "tier"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (TierTextMLP, TierOpenClipTextMLP, TierVisionMLP)):
            for layer in module:
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, mean=0.0, std=layer.in_features**-0.5)
        elif isinstance(module, SiglipMultiheadAttentionPoolingHead):
            init.xavier_uniform_(module.probe)
        elif isinstance(module, TierModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
            for projection in (module.text_projection, module.visual_projection):
                if isinstance(projection, nn.Linear):
                    init.normal_(projection.weight, mean=0.0, std=projection.in_features**-0.5)


class TierCachedGradients(NamedTuple):
    """
    For a part of n pairs of a batch that does not fit into memory at once: the gradient of the whole batch's
    contrastive loss, and of its local loss, which take no encoder to compute once the embeddings are known.
    """

    text_embeds: torch.Tensor
    """Gradient (n, D) with respect to the normalised embeddings of the part's texts."""
    image_embeds: torch.Tensor
    """The same (n, D) for the images."""
    logit_scale: torch.Tensor | None
    """Gradient (scalar) with respect to `logit_scale`; for one part of a batch only."""
    term_weight: torch.Tensor
    """The weight (scalar) of the part's local terms in those of the whole batch."""
    token_embeds: torch.Tensor | None = None
    """Gradient (n, T, D) with respect to the normalised embeddings of the part's tokens, if a local loss has any."""
    patch_embeds: torch.Tensor | None = None
    """The same (n, P, D) for the patches."""

    def contrastive_part(self, text_embeds, image_embeds, logit_scale) -> torch.Tensor:
        """A number whose gradient is the part's contribution to that of the contrastive loss."""
        part = (text_embeds * self.text_embeds).sum() + (image_embeds * self.image_embeds).sum()
        return part if self.logit_scale is None else part + logit_scale * self.logit_scale

    def local_part(self, output: TierOutput) -> torch.Tensor:
        """The same for the local loss, as far as it depends on tokens and patches."""
        grads = {"token_embeds": self.token_embeds, "patch_embeds": self.patch_embeds}
        parts = [(output[name] * grad).sum() for name, grad in grads.items() if grad is not None]
        return sum(parts, output["text_embeds"].new_zeros(()))


class TierModel(TierPreTrainedModel):
    """
    CLIP with text-image entropy regularisation (arXiv 2212.06710), over any two encoders of transformers.

    With `lambda_token = lambda_patch = 0`, `image_pooling="cls"` and CLIP's encoders it computes what `CLIPModel`
    computes, under the same parameter names. With SigLIP's encoders and heads, its embeddings and logits are those of
    `SiglipModel`.
    """

    def __init__(self, config: TierConfig):
        super().__init__(config)
        self.text_model = build_encoder(config.text_config)
        self.vision_model = build_encoder(config.vision_config)
        self.visual_projection = _visual_projection(config, encoder_width(config.vision_config))
        self.text_projection = _text_projection(config, encoder_width(config.text_config))
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))
        self.post_init()
        self._freeze_untrained()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As every model's, but complete: weights that are missing or surplus are an error and not a warning, unless
        `output_loading_info=True` asks for their names.

        Raises:
            ValueError: if weights are missing or surplus or hold NaN or infinite values, their index names files
                outside of the folder, or an option is mistyped.
        """
        check_option_names(kwargs, near_only=True)
        check_weight_index(pretrained_model_name_or_path)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_finite_weights(model, pretrained_model_name_or_path)
        # The loader replaces the parameters of __init__, all of which train.
        model._freeze_untrained()
        if output_loading_info:
            return model, info
        wrong = {"missing": info["missing_keys"], "surplus": info["unexpected_keys"]}
        texts = [f"{kind}: {', '.join(sorted(names))}" for kind, names in wrong.items() if names]
        if texts:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} are not those of its config.json; {'; '.join(texts)}."
            )
        return model

    def _freeze_untrained(self) -> None:
        """DDP waits for a gradient of every parameter that trains: those that no embedding depends on do not."""
        for name in ("text_model", "vision_model"):
            encoder = getattr(self, name)
            for unreached in unreached_parameters(encoder.config):
                encoder.get_parameter(unreached).requires_grad_(False)
        if self.logit_bias is not None:
            # The softmax over the batch cancels it: its gradient is rounding noise, which Adam would blow up.
            self.logit_bias.requires_grad_(False)

    @classmethod
    def from_clip(cls, name_or_path: str, **tier_options) -> "TierModel":
        """
        A TierModel with the weights of a saved `CLIPModel`, both encoders and projections.

        Args:
            name_or_path (`str`): folder or Hub id of a CLIPModel.
            **tier_options: options of [`TierConfig`], such as `lambda_token=0.5`. Projections and encoders are CLIP's.

        Raises:
            ValueError: if it is not a CLIPModel, or the weights do not fit.
        """
        check_option_names(tier_options)
        clip_config = AutoConfig.from_pretrained(name_or_path)
        if clip_config.model_type != "clip":
            raise ValueError(
                f"{name_or_path} holds a model of type {clip_config.model_type!r}; from_clip needs a CLIPModel "
                "('clip'). Use TierModel.from_pretrained for a TIER model, from_encoders for two encoders."
            )
        taken = {"text_config", "vision_config", "projection", "projection_dim"} & set(tier_options)
        if taken:
            raise ValueError(
                f"from_clip takes {sorted(taken)} from the CLIP model; leave it out or use from_encoders."
            )
        options = {"logit_scale_init_value": clip_config.logit_scale_init_value, **tier_options}
        config = TierConfig(
            text_config=clip_config.text_config,
            vision_config=clip_config.vision_config,
            projection_dim=clip_config.projection_dim,
            **options,
        )
        model, info = cls.from_pretrained(name_or_path, config=config, output_loading_info=True)
        wrong = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys") if info[name]}
        if wrong:
            raise ValueError(f"The weights in {name_or_path} do not fit a CLIPModel: {wrong}.")
        return model

    @classmethod
    def from_encoders(cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **tier_options) -> "TierModel":
        """
        A TierModel with the weights of two encoders and new projections.

        Args:
            vision (`str` or `PreTrainedModel`): folder or Hub id of a vision encoder, or the model itself.
            text (`str` or `PreTrainedModel`): the same for the text encoder.
            **tier_options: options of [`TierConfig`]. `image_pooling` is `"cls"` unless said otherwise.

        Raises:
            ValueError: if an encoder cannot be used, or its weights do not fit.
        """
        check_option_names(tier_options)
        vision, text = (AutoModel.from_pretrained(m) if isinstance(m, str) else m for m in (vision, text))
        model = cls(TierConfig(text_config=text.config, vision_config=vision.config, **tier_options))
        for target, source in ((model.text_model, text), (model.vision_model, vision)):
            missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
            # A tower's own pooling head is not used: the global state goes through our projection.
            leftover = [key for key in unexpected if not key.startswith(("pooler.", "head."))]
            if missing or leftover:
                raise ValueError(f"{type(source).__name__}: missing weights {missing}, unused weights {leftover}.")
            if unexpected:
                logger.warning(f"The pooling head of {type(source).__name__} is not used: {unexpected}.")
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory, **kwargs):
        # The zero-shot pipeline looks for the class under this name; transformers itself writes only one entry.
        if self.is_remote_code():
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = auto_map | {"AutoModelForZeroShotImageClassification": "modeling_tier.TierModel"}
            # What a module imports travels with it: this import takes the pipeline's file along.
            from .pipeline_tier import SAVED_PIPELINES

            self.config.custom_pipelines = SAVED_PIPELINES
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The text encoder's output, with the projected, not normalised global state `(M, D)` as `pooler_output`."""
        return self.encode_text(input_ids, attention_mask, position_ids, token_type_ids, **kwargs).encoder_output

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The vision encoder's output, with the projected, not normalised global state `(N, D)` as `pooler_output`."""
        if not self.training:
            warn_if_clipped(pixel_values)
        return self.encode_image(pixel_values, interpolate_pos_encoding, **kwargs).encoder_output

    @torch.no_grad()
    def get_similarity_map(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
        kind: str = "cosine",
        **kwargs,
    ) -> TierSimilarityMap:
        """
        Where the words point: cosines of the tokens, and of the whole text, with every patch of the image. They are
        not smoothed; the authors of BioViL filter theirs by a gaussian of 1.5 patches (in the evaluation,
        `--smooth_maps 1.5`).

        The cosine with the image's global embedding is a sum over the patches where this embedding is the mean of the
        patches': with `z_p` a projected patch and `v` the mean of the P patches, both not normalised, and `t` of unit
        length, `cos(v, t) = sum_p <z_p, t> / (P |v|)`. The map of contributions shows the summands: the cosine of each
        patch, times its [`TierModel.patch_weights`].

        Args:
            pixel_values (`torch.Tensor` of shape `(N, 3, H, W)`): images; a single one is laid against all texts.
            input_ids (`torch.Tensor` of shape `(N, T)`): texts; a single one is laid against all images.
            attention_mask (`torch.Tensor` of shape `(N, T)`, *optional*): 1 at tokens, 0 at padding.
            size (`tuple[int, int]`, *optional*): height and width to which the maps are scaled, bilinearly: pass
                `pixel_values.shape[-2:]` to lay them over the input. By default they stay on the patch grid (h, w).
            kind (`str`, defaults to `"cosine"`): `"cosine"`, or `"contribution"`, with `image_pooling="mean"` alone: a
                class token is no sum over the patches, nor is SigLIP's attention, behind which a perceptron stands.
            **kwargs: further inputs of the encoders, such as `token_type_ids`.

        Returns:
            [`TierSimilarityMap`]: `(token_to_patch (N, T, h, w), text_to_patch (N, h, w))`, rows from top to bottom.

        Raises:
            ValueError: if the numbers of images and texts do not fit, or the model has no map of this kind.
        """
        if kind not in MAP_KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, MAP_KINDS))}; got {kind!r}.")
        text_kwargs = {name: kwargs.pop(name, None) for name in ("position_ids", "token_type_ids")}
        image_kwargs = {"interpolate_pos_encoding": kwargs.pop("interpolate_pos_encoding", False)}
        if kwargs:
            raise TypeError(f"get_similarity_map got unexpected arguments {sorted(kwargs)}.")
        text = self.encode_text(input_ids, attention_mask, **text_kwargs)
        image = self.encode_image(pixel_values, **image_kwargs)
        num_images, num_texts = len(image.embeds), len(text.embeds)
        if num_images != num_texts and 1 not in (num_images, num_texts):
            raise ValueError(
                f"Got {num_images} images and {num_texts} texts; pass as many of both, or a single one of either."
            )
        # The text itself goes along as one more row of tokens.
        rows = torch.cat([text.local_embeds, text.embeds.unsqueeze(1)], dim=1)
        maps = l2_normalize(rows) @ l2_normalize(image.local_embeds).transpose(1, 2).to(rows.device)
        if kind == "contribution":
            maps = maps * self.patch_weights(image).unsqueeze(1).to(maps.device)
        maps = maps.unflatten(2, image.grid)
        if size is not None:
            maps = nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
        token_maps, text_map = maps[:, :-1], maps[:, -1]
        if attention_mask is not None:
            token_maps = token_maps * attention_mask.to(token_maps.dtype)[:, :, None, None]
        return TierSimilarityMap(token_to_patch=token_maps, text_to_patch=text_map)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        output_entropy: bool = False,
        output_patch_weights: bool = False,
        entropy_scale: float = 1.0,
        interpolate_pos_encoding: bool = False,
        cached_gradients: TierCachedGradients | None = None,
        local_loss: Callable[["TierModel", TierOutput], torch.Tensor] | None = None,
        **kwargs,
    ) -> TierOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(M, T)`): token ids.
            pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): images.
            attention_mask (`torch.Tensor` of shape `(M, T)`, *optional*): 1 at tokens, 0 at padding; without it
                every position counts as a token.
            return_loss (`bool`, *optional*): whether to compute the loss; the i-th text then belongs to the i-th
                image. In training mode under torch.distributed the negatives come from all processes, with gradient,
                and the loss and both entropies are those of the pairs of all processes, which may differ in number.
                The mean over the processes of the gradients (as DDP takes it) is the gradient of that loss.
            output_entropy (`bool`, defaults to `False`): whether to compute both entropies where the loss does not
                need them (`return_loss` not set, or both lambdas 0). They then serve as a diagnostic only.
            output_patch_weights (`bool`, defaults to `False`): whether to return `patch_weights`.
            entropy_scale (`float`, defaults to 1.0): factor on both lambdas, for a ramp.
            interpolate_pos_encoding (`bool`, defaults to `False`): lets a vision transformer take another image size.
            cached_gradients ([`TierCachedGradients`], *optional*): for `return_loss` on a part of a batch whose
                contrastive loss is known already. The loss is then one whose gradient is this part's contribution to
                the whole batch's, and has no other meaning; the entropies are this part's alone.
            local_loss (`Callable`, *optional*): for `return_loss`, a further term: called with the model and the
                output, it returns a scalar that is added to the loss. It is called here, and not by the caller, so
                that it may use the model's parameters wherever they are sharded or their gradients are reduced.

        Raises:
            ValueError: if an input is missing, or the numbers of images and texts differ where pairs are needed.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("TierModel needs input_ids and pixel_values; for one alone use get_text/image_features.")
        text = self.encode_text(input_ids, attention_mask, position_ids, token_type_ids, **kwargs)
        image = self.encode_image(pixel_values, interpolate_pos_encoding, **kwargs)
        if not self.training:
            warn_if_clipped(pixel_values)
        text_embeds, image_embeds = l2_normalize(text.embeds), l2_normalize(image.embeds)
        logits_per_text = self._logits(text_embeds, image_embeds.to(text_embeds.device))

        weighs_terms = entropy_scale > 0 and any(weight > 0 for weight in self.config.term_weights.values())
        if return_loss or output_entropy:
            _check_pairs(len(image_embeds), len(text_embeds))
        loss, contrastive_loss, terms = None, None, {}
        if output_entropy or (return_loss and weighs_terms):
            mask = self.entropy_mask(input_ids, attention_mask)
            terms = self.local_terms(text.local_embeds, image.local_embeds.to(text_embeds.device), mask)
        if return_loss and cached_gradients is not None:
            contrastive_loss = cached_gradients.contrastive_part(text_embeds, image_embeds, self.logit_scale)
            entropy_scale = entropy_scale * cached_gradients.term_weight
        elif return_loss:
            contrastive_loss = self.contrastive_loss(text_embeds, image_embeds, logits_per_text)
            if self.gathers and terms:
                counted = len(text_embeds) if mask is None else mask.any(dim=1).sum()
                terms = dict(zip(terms, mean_over_processes(list(terms.values()), counted)))
        if return_loss:
            loss = self.total_loss(contrastive_loss, terms if weighs_terms else {}, entropy_scale)

        output = TierOutput(
            loss=loss,
            contrastive_loss=contrastive_loss,
            **terms,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            token_embeds=l2_normalize(text.local_embeds),
            patch_embeds=l2_normalize(image.local_embeds),
            patch_weights=self.patch_weights(image) if output_patch_weights else None,
            text_model_output=text.encoder_output,
            vision_model_output=image.encoder_output,
        )
        if loss is not None and local_loss is not None:
            output["local_loss"] = local_loss(self, output)
            output["loss"] = loss + output.local_loss
        if loss is not None and cached_gradients is not None:
            output["loss"] = loss + cached_gradients.local_part(output)
        return output

    def encode_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> TierEncoding:
        """
        Embeddings of M texts and of their T tokens.

        SigLIP's text encoder gets what it was trained on, texts padded at their end to full length and no attention
        mask; its output then has max_position_embeddings states.

        Args:
            input_ids (`torch.Tensor` of shape `(M, T)`): token ids.
            attention_mask (`torch.Tensor` of shape `(M, T)`, *optional*): 1 at tokens, 0 at padding.
            position_ids, token_type_ids (of the same shape, *optional*), **kwargs: what else the encoder takes.

        Raises:
            ValueError: if the ids have another shape or dtype, are too many for the encoder's positions, or (on the
                CPU, where looking costs nothing) outside of its vocabulary.
        """
        self._check_text(input_ids, attention_mask)
        config: PreTrainedConfig = self.config.text_config
        num_tokens = input_ids.shape[1]
        if config.model_type in LAST_POOLED_TEXT:
            if position_ids is not None:
                raise ValueError("SigLIP's text encoder takes no position_ids here: its texts are padded.")
            input_ids, attention_mask = pad_to_full_length(config, input_ids, attention_mask), None
        # Not every text encoder takes every one of these.
        optional = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        kwargs.update({name: value for name, value in optional.items() if value is not None})
        layers = self.config.text_layers
        if layers is not None:
            kwargs["output_hidden_states"] = True
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        states = outputs.last_hidden_state
        if layers is not None:
            states = torch.stack([outputs.hidden_states[layer] for layer in layers]).mean(dim=0)
        token_embeds = self.text_projection(states)
        if self.config.text_pooling == "mean":
            embeds = _mean_over_tokens(token_embeds, attention_mask)
        else:
            if self.config.text_pooling == "last":
                position = last_token_position(input_ids, attention_mask)
            else:
                position = global_token_position(config, input_ids, attention_mask)
            position = position.to(token_embeds.device)
            embeds = token_embeds[torch.arange(position.shape[0], device=position.device), position]
        outputs["pooler_output"] = embeds
        return TierEncoding(embeds, token_embeds[:, :num_tokens], None, outputs)

    def encode_image(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> TierEncoding:
        """
        Embeddings of N images and of their P patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(N, C, H, W)`): images, of any floating dtype.
            interpolate_pos_encoding (`bool`, defaults to `False`): lets a vision transformer take another image size.
            **kwargs: what else the encoder takes.

        Raises:
            ValueError: if the pixels have another shape or are integers, or the encoder's states are no grid.
        """
        config: PreTrainedConfig = self.config.vision_config
        check_pixels(config, pixel_values)
        if interpolate_pos_encoding:
            kwargs["interpolate_pos_encoding"] = True
        # As CLIP's encoder does; ResNet, ConvNeXt and others leave it to the caller.
        pixel_values = pixel_values.to(self.vision_model.dtype)
        if self.config.input_side is not None:
            side = self.config.input_side
            pixel_values = nn.functional.interpolate(pixel_values, (side, side), mode="bilinear", align_corners=True)
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        hidden_states, grid = self._states_and_grid(outputs.last_hidden_state, pixel_values)
        if self.config.image_pooling == "attention":
            embeds = self.visual_projection(hidden_states)
            # Attention over a single patch gives that patch's value: the way of the global embedding, without mixing.
            patches = hidden_states.flatten(0, 1).unsqueeze(1)
            patch_embeds = self.visual_projection(patches).unflatten(0, hidden_states.shape[:2])
        elif self.config.image_pooling == "cls":
            # split, whose gradient is written once, where two slices each pad theirs with zeros
            class_embeds, patch_embeds = self.visual_projection(hidden_states).split([1, grid[0] * grid[1]], dim=1)
            embeds = class_embeds[:, 0]
        else:
            patch_embeds = self.visual_projection(hidden_states)
            embeds = patch_embeds[:, 0] if self.config.image_pooling == "first" else patch_embeds.mean(dim=1)
        outputs["pooler_output"] = embeds
        return TierEncoding(embeds, patch_embeds, grid, outputs)

    def _states_and_grid(
        self, hidden_states: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        Of a vision encoder's last states, (N, C, h, w) or (N, S, C), those of the class token, where the global
        embedding is made from it, and of the patches: (N, [1 +] h * w, C); and the grid (h, w).
        """
        config: PreTrainedConfig = self.config.vision_config
        if hidden_states.ndim == 4:  # (N, C, h, w)
            grid, num_prefix_tokens = tuple(hidden_states.shape[2:]), 0
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        else:
            grid = patch_grid(config, pixel_values)
            num_prefix_tokens = hidden_states.shape[1] - grid[0] * grid[1]
        with_class_token = self.config.image_pooling == "cls"
        if num_prefix_tokens < (1 if with_class_token else 0):
            raise ValueError(
                f"{config.model_type!r} returned {hidden_states.shape[1]} states for a grid of {grid[0]}x{grid[1]} "
                "patches" + (": it has no class token, use image_pooling='mean'." if with_class_token else ".")
            )
        if num_prefix_tokens > int(with_class_token):  # without registers, and without a class token that is not used
            patches = hidden_states[:, num_prefix_tokens:]
            hidden_states = torch.cat([hidden_states[:, :1], patches], dim=1) if with_class_token else patches
        return with_pooled_norm(self.vision_model, hidden_states), grid

    @property
    def no_contributions(self) -> str | None:
        """Why this model has no maps of contributions; None if it has them."""
        origins = {
            "cls": "that of a class token",
            "attention": "attention's with a perceptron behind it",
            "first": "that of the first patch alone",
        }
        if self.config.image_pooling not in origins:
            return None
        origin = origins[self.config.image_pooling]
        return f"this model's global embedding is {origin}, which is no sum over the patches"

    def patch_weights(self, image: TierEncoding) -> torch.Tensor:
        """
        The weights (N, P) by which the cosines of N images' patches with a text sum to the cosine of the image with
        it: `|z_p| / (P |v|)`, see [`TierModel.get_similarity_map`].

        Raises:
            ValueError: if the global embedding is not the mean of the patches'.
        """
        if self.no_contributions:
            raise ValueError(
                "Only with image_pooling='mean' does a patch contribute a part of the score; "
                f"{self.no_contributions}. Use its cosines."
            )
        dtype = torch.promote_types(image.local_embeds.dtype, torch.float32)
        norm = torch.linalg.vector_norm(image.local_embeds, dim=-1, dtype=dtype)  # (N, P)
        mean_norm = torch.linalg.vector_norm(image.embeds, dim=-1, keepdim=True, dtype=dtype)  # (N, 1)
        return norm / (norm.shape[1] * mean_norm).clamp(min=1e-12)

    def _check_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        config: PreTrainedConfig = self.config.text_config
        shape = tuple(input_ids.shape)
        if input_ids.ndim != 2 or 0 in shape or input_ids.is_floating_point():
            raise ValueError(
                "input_ids must be integers of shape (M, T), at least one text of at least one token; got "
                f"{input_ids.dtype} of shape {shape}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask must have the shape of input_ids, {shape}; got {attention_mask.shape}.")
        longest = max_text_length(config)
        if longest is not None and shape[1] > longest:
            raise ValueError(
                f"The texts have {shape[1]} tokens, and {config.model_type!r} takes at most "
                f"{longest}: truncate them (processor(..., truncation=True, max_length={longest}))."
            )
        # On another device this would wait for it; while a graph is traced there are no values to look at.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            vocab_size = config.vocab_size
            lowest, highest = torch.aminmax(input_ids)
            if lowest < 0 or highest >= vocab_size:
                wrong = highest if highest >= vocab_size else lowest
                raise ValueError(
                    f"The token id {int(wrong)} is outside of the text encoder's vocabulary, 0 to {vocab_size - 1}: "
                    "the tokenizer is another model's."
                )

    def local_terms(
        self, token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """
        The terms of the loss that look at the tokens and patches of matched pairs alone: scalars by their names in
        `TERMS`, each a mean over the pairs that have a counted token, so that parts of a batch can be averaged.

        Args:
            token_embeds (`torch.Tensor` of shape `(N, T, D)`), patch_embeds (`(N, P, D)`): as [`TierEncoding`] has
                them, not normalised.
            token_mask (`torch.Tensor` of shape `(N, T)`, *optional*): of [`TierModel.entropy_mask`].
        """
        entropy = text_image_entropy(token_embeds, patch_embeds, token_mask, self.config.entropy_temperature)
        return {"token_entropy": entropy.token, "patch_entropy": entropy.patch}

    def total_loss(
        self, contrastive_loss: torch.Tensor, terms: dict[str, torch.Tensor], scale: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """The contrastive loss and the weighted sum of `terms`, times `scale`."""
        if not terms:
            return contrastive_loss
        weights = self.config.term_weights
        return contrastive_loss + scale * sum(weights[name] * value for name, value in terms.items())

    def entropy_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Positions (M, T) that count in the two entropies; None if all do."""
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        if not self.config.count_special_tokens:
            # Not made on the device, which the host would wait for.
            special_ids = torch.tensor(self.config.special_token_ids).to(input_ids.device, non_blocking=True)
            special = torch.isin(input_ids, special_ids)
            mask = ~special if mask is None else mask & ~special
        return mask

    def _logits(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Logits (M, N) of M normalised embeddings against N of the other modality."""
        logits = rows @ columns.t() * self.logit_scale.exp().to(rows.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(rows.device)

    @property
    def gathers(self) -> bool:
        """Whether a loss is one of the pairs of all processes."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return self.training and distributed and torch.distributed.get_world_size() > 1

    def contrastive_loss(
        self, text_embeds: torch.Tensor, image_embeds: torch.Tensor, logits_per_text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        CLIP's loss, the mean of the two cross-entropies: scalar. In training mode under torch.distributed that of the
        pairs of all processes; a process lays its own pairs against those of all, so it holds no more than its rows of
        the logits.

        Args:
            text_embeds (`torch.Tensor` of shape `(N, D)`), image_embeds (of the same shape): normalised embeddings.
            logits_per_text (`torch.Tensor` of shape `(N, N)`, *optional*): theirs, if known already.
        """
        targets = torch.arange(len(text_embeds), device=text_embeds.device)
        if not self.gathers:
            if logits_per_text is None:
                logits_per_text = self._logits(text_embeds, image_embeds.to(text_embeds.device))
            return _symmetric_cross_entropy(logits_per_text, logits_per_text.t(), targets)
        sizes = sizes_of_processes(len(text_embeds), text_embeds.device)
        all_text, all_image = (gather_rows(embeds, sizes) for embeds in (text_embeds, image_embeds))
        targets = targets + sum(sizes[: torch.distributed.get_rank()])
        loss = _symmetric_cross_entropy(
            self._logits(text_embeds, all_image), self._logits(image_embeds, all_text), targets
        )
        return mean_over_processes([loss], len(text_embeds))[0]


def _mean_over_tokens(token_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Means (M, D) of token embeddings (M, T, D) over the positions that hold a token."""
    if attention_mask is None:
        return token_embeds.mean(dim=1)
    weights = attention_mask.to(token_embeds).unsqueeze(-1)
    return (token_embeds * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _visual_projection(config: TierConfig, width: int) -> nn.Module:
    if config.projection == "mlp":
        return TierVisionMLP(width, config.projection_dim)
    if config.projection == "siglip":
        return SiglipMultiheadAttentionPoolingHead(config.vision_config)
    return nn.Linear(width, config.projection_dim, bias=config.projection == "affine")


def _text_projection(config: TierConfig, width: int) -> nn.Module:
    if config.projection == "mlp":
        return TierTextMLP(width, config.projection_dim)
    if config.projection == "open_clip":
        return TierOpenClipTextMLP(width, config.projection_dim)
    return nn.Linear(width, config.projection_dim, bias=config.projection in ("affine", "siglip"))


def _symmetric_cross_entropy(logits_per_text, logits_per_image, targets) -> torch.Tensor:
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits_per_text, targets) + cross_entropy(logits_per_image, targets)) / 2


def check_weight_index(name_or_path) -> None:
    """Raise ValueError if the index of a folder's weights names a file that is not in this folder."""
    for index in Path(name_or_path).glob("*.index.json") if name_or_path and os.path.isdir(name_or_path) else ():
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            outside = sorted(file for file in files if Path(file).name != file)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of weights: {error}") from error
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}: weights must lie beside their index.")


@torch.no_grad()
def check_finite_weights(model: nn.Module, source) -> None:
    """Raise ValueError if parameters, which came from `source`, hold NaN or infinite values; it names them."""
    wrong = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        # A sum is the cheapest look at all values; that of large ones alone may overflow.
        total = parameter.sum(dtype=torch.promote_types(parameter.dtype, torch.float32))
        if not total.isfinite() and not parameter.isfinite().all():
            wrong.append(name)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"The weights in {source} hold NaN or infinite values: {', '.join(wrong[:3])}{more}. Their training "
            "diverged, or the file is damaged."
        )


def _check_pairs(num_images: int, num_texts: int) -> None:
    if num_images != num_texts:
        raise ValueError(
            f"A loss or an entropy needs matched pairs, the i-th text with the i-th image; got {num_images} images "
            f"and {num_texts} texts."
        )


TierModel.register_for_auto_class("AutoModel")
