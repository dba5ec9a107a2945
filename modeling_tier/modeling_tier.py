# Licensed under the Apache License, Version 2.0.
"""TierModel: two encoders, one joint space, and the contrastive loss plus the text-image entropy regulariser."""

import inspect
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_tier import EOS_POOLED_TEXT, LAST_POOLED_TEXT, TierConfig, encoder_class, encoder_width
from .entropy_tier import l2_normalize, text_image_entropy


logger = logging.get_logger(__name__)

# Norms that these encoders apply to their pooled state only; the patches take the same way into the joint space.
_POOLED_NORM = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}


@dataclass
class TierOutput(ModelOutput):
    """
    Output of [`TierModel`], for N images and M texts (N = M pairs where a loss is asked for).

    Args:
        loss (`torch.Tensor`, scalar, returned when `return_loss` is `True`):
            `contrastive_loss + entropy_scale * (lambda_token * token_entropy + lambda_patch * patch_entropy)`.
        contrastive_loss (`torch.Tensor`, scalar, returned when `return_loss` is `True`):
            Symmetric cross-entropy over the batch, as CLIP's.
        token_entropy (`torch.Tensor`, scalar, *optional*):
            Mean entropy of a token over the patches, in nats.
        patch_entropy (`torch.Tensor`, scalar, *optional*):
            Mean entropy of a patch over the tokens, in nats.
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
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class TierSimilarityMap(NamedTuple):
    """Cosine maps of N pairs on the patch grid (h, w), or on the pixels if a size was asked for."""

    token_to_patch: torch.Tensor
    """`(N, T, h, w)`: each token with each patch; 0 at padding."""
    text_to_patch: torch.Tensor
    """`(N, h, w)`: the global text embedding with each patch."""


class TierTextMLP(nn.Sequential):
    """The paper's text head: linear, GELU, layer norm, linear."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, out_features),
            nn.GELU(),
            nn.LayerNorm(out_features, eps=1e-12),
            nn.Linear(out_features, out_features),
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
        if isinstance(module, (TierTextMLP, TierVisionMLP)):
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
    contrastive loss, which takes no encoder to compute once the embeddings are known.
    """

    text_embeds: torch.Tensor
    """Gradient (n, D) with respect to the normalised embeddings of the part's texts."""
    image_embeds: torch.Tensor
    """The same (n, D) for the images."""
    logit_scale: torch.Tensor | None
    """Gradient (scalar) with respect to `logit_scale`; for one part of a batch only."""
    entropy_share: torch.Tensor
    """What the part's entropies weigh among those of the whole batch (scalar)."""

    def contrastive_share(self, text_embeds, image_embeds, logit_scale) -> torch.Tensor:
        """A number whose gradient is the part's share of that of the contrastive loss."""
        share = (text_embeds * self.text_embeds).sum() + (image_embeds * self.image_embeds).sum()
        return share if self.logit_scale is None else share + logit_scale * self.logit_scale


class TierModel(TierPreTrainedModel):
    """
    CLIP with text-image entropy regularisation (arXiv 2212.06710), over any two encoders of transformers.

    With `lambda_token = lambda_patch = 0`, `image_pooling="cls"` and CLIP's encoders it computes what `CLIPModel`
    computes, under the same parameter names. With SigLIP's encoders and heads, its embeddings and logits are those of
    `SiglipModel`.
    """

    def __init__(self, config: TierConfig):
        super().__init__(config)
        self.text_model = _build_encoder(config.text_config)
        self.vision_model = _build_encoder(config.vision_config)
        text_width, vision_width = encoder_width(config.text_config), encoder_width(config.vision_config)
        if config.projection == "linear":
            self.visual_projection = nn.Linear(vision_width, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(text_width, config.projection_dim, bias=False)
        elif config.projection == "mlp":
            self.visual_projection = TierVisionMLP(vision_width, config.projection_dim)
            self.text_projection = TierTextMLP(text_width, config.projection_dim)
        else:
            self.visual_projection = SiglipMultiheadAttentionPoolingHead(config.vision_config)
            self.text_projection = nn.Linear(text_width, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))
        self.post_init()
        self._freeze_untrained()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # The loader puts new parameters in the place of those of __init__, all of which train.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_untrained()
        return loaded

    def _freeze_untrained(self) -> None:
        """No patch is ever masked here, and DDP wants a gradient for all that train."""
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)
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
        vision, text = (AutoModel.from_pretrained(m) if isinstance(m, str) else m for m in (vision, text))
        model = cls(TierConfig(text_config=text.config, vision_config=vision.config, **tier_options))
        for target, source in ((model.text_model, text), (model.vision_model, vision)):
            missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
            # A tower's own pooling head has no place here: the global state goes through our projection.
            leftover = [key for key in unexpected if not key.startswith(("pooler.", "head."))]
            if missing or leftover:
                raise ValueError(
                    f"{type(source).__name__}: missing weights {missing}, weights without a place {leftover}."
                )
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
        return self._encode_text(input_ids, attention_mask, position_ids, token_type_ids, **kwargs)[0]

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The vision encoder's output, with the projected, not normalised global state `(N, D)` as `pooler_output`."""
        return self._encode_image(pixel_values, interpolate_pos_encoding, **kwargs)[0]

    @torch.no_grad()
    def get_similarity_map(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
        **kwargs,
    ) -> TierSimilarityMap:
        """
        Where the words point: cosines of the tokens, and of the whole text, with every patch of the image.

        Args:
            pixel_values (`torch.Tensor` of shape `(N, 3, H, W)`): images; a single one is laid against all texts.
            input_ids (`torch.Tensor` of shape `(N, T)`): texts; a single one is laid against all images.
            attention_mask (`torch.Tensor` of shape `(N, T)`, *optional*): 1 at tokens, 0 at padding.
            size (`tuple[int, int]`, *optional*): height and width to which the maps are scaled, bilinearly: pass
                `pixel_values.shape[-2:]` to lay them over the input. By default they stay on the patch grid (h, w).
            **kwargs: further inputs of the encoders, such as `token_type_ids`.

        Returns:
            [`TierSimilarityMap`]: `(token_to_patch (N, T, h, w), text_to_patch (N, h, w))`, rows from top to bottom.
        """
        text_kwargs = {name: kwargs.pop(name, None) for name in ("position_ids", "token_type_ids")}
        image_kwargs = {"interpolate_pos_encoding": kwargs.pop("interpolate_pos_encoding", False)}
        if kwargs:
            raise TypeError(f"get_similarity_map got unexpected arguments {sorted(kwargs)}.")
        text_outputs, token_embeds = self._encode_text(input_ids, attention_mask, **text_kwargs)
        _, patch_embeds, (height, width) = self._encode_image(pixel_values, **image_kwargs)
        num_images, num_texts = patch_embeds.shape[0], token_embeds.shape[0]
        if num_images != num_texts and 1 not in (num_images, num_texts):
            raise ValueError(
                f"Got {num_images} images and {num_texts} texts; pass as many of both, or a single one of either."
            )
        # The text itself goes along as one more row of tokens.
        rows = torch.cat([token_embeds, text_outputs.pooler_output.unsqueeze(1)], dim=1)
        maps = l2_normalize(rows) @ l2_normalize(patch_embeds).transpose(1, 2).to(rows.device)
        maps = maps.unflatten(2, (height, width))
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
        entropy_scale: float = 1.0,
        interpolate_pos_encoding: bool = False,
        cached_gradients: TierCachedGradients | None = None,
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
            entropy_scale (`float`, defaults to 1.0): factor on both lambdas, for a ramp.
            interpolate_pos_encoding (`bool`, defaults to `False`): lets a vision transformer take another image size.
            cached_gradients ([`TierCachedGradients`], *optional*): for `return_loss` on a part of a batch whose
                contrastive loss is known already. The loss is then one whose gradient is this part's share of the
                whole batch's, and has no other meaning; the entropies are this part's alone.

        Raises:
            ValueError: if an input is missing, or the numbers of images and texts differ where pairs are needed.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("TierModel needs input_ids and pixel_values; for one alone use get_text/image_features.")
        text_outputs, token_embeds = self._encode_text(
            input_ids, attention_mask, position_ids, token_type_ids, **kwargs
        )
        vision_outputs, patch_embeds, _ = self._encode_image(pixel_values, interpolate_pos_encoding, **kwargs)

        text_embeds = l2_normalize(text_outputs.pooler_output)
        image_embeds = l2_normalize(vision_outputs.pooler_output)
        logits_per_text = self._logits(text_embeds, image_embeds.to(text_embeds.device))

        weighs_entropy = entropy_scale > 0 and (self.config.lambda_token > 0 or self.config.lambda_patch > 0)
        if return_loss or output_entropy:
            _check_pairs(len(image_embeds), len(text_embeds))
        loss = contrastive_loss = token_entropy = patch_entropy = None
        if output_entropy or (return_loss and weighs_entropy):
            mask = self.entropy_mask(input_ids, attention_mask)
            token_entropy, patch_entropy = text_image_entropy(
                token_embeds, patch_embeds.to(token_embeds.device), mask, self.config.entropy_temperature
            )
        if return_loss and cached_gradients is not None:
            contrastive_loss = cached_gradients.contrastive_share(text_embeds, image_embeds, self.logit_scale)
            entropy_scale = entropy_scale * cached_gradients.entropy_share
        elif return_loss:
            contrastive_loss = self.contrastive_loss(text_embeds, image_embeds, logits_per_text)
            if self.gathers and token_entropy is not None:
                counted = len(text_embeds) if mask is None else mask.any(dim=1).sum()
                token_entropy, patch_entropy = _mean_over_processes([token_entropy, patch_entropy], counted)
        if return_loss:
            loss = contrastive_loss
            if weighs_entropy:
                entropy = self.config.lambda_token * token_entropy + self.config.lambda_patch * patch_entropy
                loss = loss + entropy_scale * entropy

        return TierOutput(
            loss=loss,
            contrastive_loss=contrastive_loss,
            token_entropy=token_entropy,
            patch_entropy=patch_entropy,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            token_embeds=l2_normalize(token_embeds),
            patch_embeds=l2_normalize(patch_embeds),
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def _encode_text(self, input_ids, attention_mask=None, position_ids=None, token_type_ids=None, **kwargs):
        """
        The encoder's output, its `pooler_output` the projected global state (M, D); token embeddings (M, T, D).

        SigLIP's text encoder gets what it was trained on, texts padded at their end to full length and no attention
        mask; its output then has max_position_embeddings states.
        """
        num_tokens = input_ids.shape[1]
        if self.config.text_config.model_type in LAST_POOLED_TEXT:
            if position_ids is not None:
                raise ValueError("SigLIP's text encoder takes no position_ids here: its texts are padded.")
            input_ids, attention_mask = _pad_to_full_length(self.config.text_config, input_ids, attention_mask), None
        # Not every text encoder takes every one of these.
        optional = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        kwargs.update({name: value for name, value in optional.items() if value is not None})
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        token_embeds = self.text_projection(outputs.last_hidden_state)
        position = self._global_token_position(input_ids, attention_mask).to(token_embeds.device)
        outputs["pooler_output"] = token_embeds[torch.arange(position.shape[0], device=position.device), position]
        return outputs, token_embeds[:, :num_tokens]

    def _encode_image(self, pixel_values, interpolate_pos_encoding=False, **kwargs):
        """The encoder's output, its `pooler_output` the projected global state (N, D); patches (N, P, D); (h, w)."""
        config = self.config.vision_config
        if interpolate_pos_encoding:
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        if hidden_states.ndim == 4:  # (N, C, h, w)
            grid, num_prefix_tokens = tuple(hidden_states.shape[2:]), 0
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        else:
            grid = _patch_grid(config, pixel_values)
            num_prefix_tokens = hidden_states.shape[1] - grid[0] * grid[1]
        with_class_token = self.config.image_pooling == "cls"
        if num_prefix_tokens < (1 if with_class_token else 0):
            raise ValueError(
                f"{config.model_type!r} returned {hidden_states.shape[1]} states for a grid of {grid[0]}x{grid[1]} "
                "patches" + (": it has no class token, use image_pooling='mean'." if with_class_token else ".")
            )
        if num_prefix_tokens > int(with_class_token):  # leave out registers, and the class token where it is not used
            patches = hidden_states[:, num_prefix_tokens:]
            hidden_states = torch.cat([hidden_states[:, :1], patches], dim=1) if with_class_token else patches
        if config.model_type in _POOLED_NORM:
            hidden_states = getattr(self.vision_model, _POOLED_NORM[config.model_type])(hidden_states)

        if self.config.image_pooling == "attention":
            outputs["pooler_output"] = self.visual_projection(hidden_states)
            # Attention over a single patch gives that patch's value: the way of the global embedding, without mixing.
            patches = hidden_states.flatten(0, 1).unsqueeze(1)
            return outputs, self.visual_projection(patches).unflatten(0, hidden_states.shape[:2]), grid
        embeds = self.visual_projection(hidden_states)
        patch_embeds = embeds[:, 1:] if with_class_token else embeds
        outputs["pooler_output"] = embeds[:, 0] if with_class_token else embeds.mean(dim=1)
        return outputs, patch_embeds, grid

    def _global_token_position(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Position (M,) of the token whose state stands for the whole text."""
        config = self.config.text_config
        if config.model_type in EOS_POOLED_TEXT:
            # As CLIPTextModel: checkpoints that say 2 were trained with the end token as the highest id.
            if config.eos_token_id == 2:
                return input_ids.to(torch.int).argmax(dim=-1)
            return (input_ids == config.eos_token_id).to(torch.int).argmax(dim=-1)
        if attention_mask is None:
            position = input_ids.shape[1] - 1 if config.model_type in LAST_POOLED_TEXT else 0
            return torch.full((input_ids.shape[0],), position, device=input_ids.device)
        return attention_mask.to(torch.int).argmax(dim=-1)

    def entropy_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Positions (M, T) that count in the two entropies; None if all do."""
        mask = None if attention_mask is None else attention_mask.to(torch.bool)
        if not self.config.count_special_tokens:
            special = torch.isin(input_ids, torch.tensor(self.config.special_token_ids, device=input_ids.device))
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
        sizes = _sizes_of_processes(len(text_embeds), text_embeds.device)
        all_text, all_image = (_gather(embeds, sizes) for embeds in (text_embeds, image_embeds))
        targets = targets + sum(sizes[: torch.distributed.get_rank()])
        loss = _symmetric_cross_entropy(
            self._logits(text_embeds, all_image), self._logits(image_embeds, all_text), targets
        )
        return _mean_over_processes([loss], len(text_embeds))[0]


def _symmetric_cross_entropy(logits_per_text, logits_per_image, targets) -> torch.Tensor:
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits_per_text, targets) + cross_entropy(logits_per_image, targets)) / 2


class _AllGather(torch.autograd.Function):
    """Rows (n, D) of all processes, one after the other; each gets the sum of the gradients that all have for it."""

    @staticmethod
    def forward(ctx, rows):
        ctx.size = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad)
        return grad[torch.distributed.get_rank() * ctx.size :][: ctx.size]


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, summand):
        total = summand.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return _AllReduce.forward(ctx, grad)


def _sizes_of_processes(size: int, device: torch.device) -> list[int]:
    size = torch.tensor([size], device=device)
    sizes = [torch.empty_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


def _gather(embeds: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Embeddings (sum of sizes, D) of all processes, which have different numbers of them."""
    gathered = _AllGather.apply(nn.functional.pad(embeds, (0, 0, 0, max(sizes) - len(embeds))))
    if len(set(sizes)) == 1:
        return gathered
    return torch.cat([rows[:size] for rows, size in zip(gathered.split(max(sizes)), sizes)])


def _mean_over_processes(means: list[torch.Tensor], weight: int | torch.Tensor) -> list[torch.Tensor]:
    """
    Means over all processes of scalars that are means over `weight` pairs of this one. The sum's gradient is again
    summed over the processes, of which each has the same loss: it comes out multiplied by their number, and the mean
    of the parameters' gradients, which DDP and its kind take, divides by it.
    """
    means = torch.stack([mean.float() for mean in means])
    sums = torch.cat([means, torch.ones_like(means[:1])]) * weight
    *sums, weight = _AllReduce.apply(sums)
    return [total / weight.clamp(min=1) for total in sums]


def _build_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder without the pooling head it may have: the global state is pooled and projected by TierModel."""
    model_class = encoder_class(config)
    has_pooling_layer = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    encoder = model_class._from_config(config, **({"add_pooling_layer": False} if has_pooling_layer else {}))
    if config.model_type == "siglip_text_model":
        encoder.head = nn.Identity()
    elif config.model_type == "siglip_vision_model" and encoder.use_head:
        encoder.use_head = False
        del encoder.head
    return encoder


def _pad_to_full_length(
    config: PreTrainedConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Token ids (M, max_position_embeddings), with the padding token wherever `input_ids` (M, T) have no token."""
    length, num_tokens = config.max_position_embeddings, input_ids.shape[1]
    if num_tokens > length:
        raise ValueError(
            f"The texts have {num_tokens} tokens, and {config.model_type!r} takes at most {length}: truncate them."
        )
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(attention_mask == 0, config.pad_token_id)
    return nn.functional.pad(input_ids, (0, length - num_tokens), value=config.pad_token_id)


def _patch_grid(config: PreTrainedConfig, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of a vision transformer; a hierarchical one halves them after every stage."""
    patch_size = config.patch_size if isinstance(config.patch_size, (list, tuple)) else (config.patch_size,) * 2
    stages = len(getattr(config, "depths", [None]))
    height, width = (size // (patch * 2 ** (stages - 1)) for size, patch in zip(pixel_values.shape[-2:], patch_size))
    return height, width


def _check_pairs(num_images: int, num_texts: int) -> None:
    if num_images != num_texts:
        raise ValueError(
            f"A loss or an entropy needs matched pairs, the i-th text with the i-th image; got {num_images} images "
            f"and {num_texts} texts."
        )


TierModel.register_for_auto_class("AutoModel")
