# Licensed under the Apache License, Version 2.0.
"""Pipelines: findings as independent yes/no questions with maps, and one of several captions."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, ZeroShotImageClassificationPipeline

from .cosines_tier import l2_normalize
from .encoders_tier import max_text_length
from .framing_tier import Framing
from .maps_tier import NO_FINDING, interpolation, overlay_map, picture_geometry, words_of
from .notes_tier import note, unknown_words, unlike_radiograph
from .processing_tier import TierProcessor
from .reading_tier import open_radiograph


TASK = "tier-zero-shot"
MAPS = (None, "array", "overlay")
MINUS_NO_FINDING = "_minus_no_finding"  # ending of the kinds of map from which that of "no finding" is subtracted
MAP_KINDS = ("cosine", "contribution", f"cosine{MINUS_NO_FINDING}", f"contribution{MINUS_NO_FINDING}")

CAPTION_TASK = "zero-shot-image-classification"

_SENTENCES_PER_STEP = 64
_MAX_KEPT = 4096  # lists of sentences: some 10 MB of embeddings


@dataclass(frozen=True)
class Question:
    """What is asked of pictures; see [`TierZeroShotPipeline.__call__`]."""

    findings: Any = None
    positive_template: Any = "{}."
    negative_template: Any = "No {}."
    maps: str | None = None
    map_kind: str = "cosine"
    no_finding: Any = NO_FINDING
    frame: int | None = None

    def __post_init__(self):
        sentences = [self.no_finding] if isinstance(self.no_finding, str) else self.no_finding
        is_list = isinstance(sentences, (list, tuple)) and len(sentences) > 0
        if not is_list or not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences):
            raise ValueError(f"no_finding must be a sentence or a list of sentences; got {self.no_finding!r}.")
        object.__setattr__(self, "no_finding", tuple(sentences))
        if self.maps not in MAPS:
            raise ValueError(f"maps must be one of {list(MAPS)}; got {self.maps!r}.")
        if self.map_kind not in MAP_KINDS:
            raise ValueError(f"map_kind must be one of {list(MAP_KINDS)}; got {self.map_kind!r}.")

    def replaced(self, **options: Any) -> "Question":
        """The same with the options that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})

    def prompts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """By finding its positive and its negative sentences."""
        return _prompts(self.findings, self.positive_template, self.negative_template)


class TierZeroShotPipeline(Pipeline):
    """
    Does a radiograph show these findings? Each is a question of its own: positive against negative sentences.

        read = pipeline("tier-zero-shot", model="user/name", trust_remote_code=True)
        read("radiograph.png", findings=["left pleural effusion", "cardiomegaly"])
        # [{"finding": "left pleural effusion", "score": 0.71, "difference": 0.12}, ...]

    Sentences are embedded once and kept. The model is put into evaluation mode.

    Args:
        model ([`TierModel`]): the model.
        processor ([`TierProcessor`], *optional*): its processor; by default that of the folder or repository from
            which the model was loaded.
        findings, candidate_labels, positive_template, negative_template, maps, map_kind, no_finding, frame: defaults
            for each call.
        **kwargs: options of every pipeline of transformers: `device`, `batch_size`, `num_workers`, ...
    """

    processor: Any

    _load_processor = None  # if there is one; else __init__ looks for it
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        *args,
        findings=None,
        candidate_labels=None,
        positive_template=None,
        negative_template=None,
        maps: str | None = None,
        map_kind: str | None = None,
        no_finding: str | list[str] | None = None,
        frame: int | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            self.processor = _processor_of(self.model)
        self.model.eval()
        self.defaults = Question().replaced(
            findings=_one_of(findings, candidate_labels),
            positive_template=positive_template,
            negative_template=negative_template,
            maps=maps,
            map_kind=map_kind,
            no_finding=no_finding,
            frame=frame,
        )
        self._embeds: dict[tuple[str, ...], torch.Tensor] = {}
        self._embedded_by: list[tuple] | None = None
        self._unknown: dict[tuple[str, ...], tuple[str, ...]] = {}

    def __call__(
        self,
        images,
        findings=None,
        positive_template: str | list[str] | None = None,
        negative_template: str | list[str] | None = None,
        maps: str | None = None,
        map_kind: str | None = None,
        no_finding: str | list[str] | None = None,
        frame: int | None = None,
        candidate_labels=None,
        **kwargs,
    ):
        """
        Args:
            images: one picture as [`load_radiograph`] reads it (a path, URL, DICOM file, `PIL.Image`, array), a list
                or a batch of them, or a stream: a generator, a `KeyDataset`, anything else to iterate over.
            findings (`list[str]` or `dict`): names, which are put into the templates (an underscore as a space); or
                for each name its sentences, `{"positive": [...], "negative": [...]}`.
            positive_template, negative_template (`str` or `list[str]`): sentences that say that the finding is there,
                `"{}."` by default, and that it is not, `"No {}."`, with `{}` for its name.
            maps (`str`, *optional*): `"array"` or `"overlay"` adds the map of each finding's positive sentences.
            map_kind (`str`, *optional*): `"cosine"`, the default, or `"contribution"`: what each patch adds to the
                cosine of the picture with the positive sentences ([`TierModel.get_similarity_map`]), for models
                with `image_pooling="mean"`. `"cosine_minus_no_finding"` and `"contribution_minus_no_finding"`: minus
                the same map of the sentences of `no_finding`.
            no_finding (`str` or `list[str]`): sentences of a picture without a finding, by default "No acute
                cardiopulmonary process.", "No acute cardiopulmonary abnormality." and "The lungs are clear.".
            frame (`int`, *optional*): of files of several frames, the one to read, counted from 1.
            candidate_labels: another name of `findings`.
            **kwargs: `batch_size` and `num_workers`.

        Returns:
            for one picture a list, in the order of `findings`, of
                - `finding`: its name
                - `score`: in [0, 1], the softmax over the two cosines times exp(logit_scale); above 0.5 if the
                  picture is nearer to the positive sentences. It is not a calibrated probability
                - `difference`: cos(image, positive) - cos(image, negative), of the normalised means of the
                  sentences' embeddings
                - `map` (`maps="array"`): float32 array (H, W) over the pixels of the original picture, cosines of the
                  patches with the positive embedding, or another `map_kind`, bilinear in between; NaN where the
                  processor cuts the picture
                - `grid` (`maps="array"`): height and width in patches; a contribution times their number P is on the
                  scale of cosines
                - `overlay` (`maps="overlay"`): this map over the picture, as [`overlay_map`] paints it; of
                  contributions, P times theirs, so that a patch of mean length has the colour of its cosine
                - `note`, only where the score says little: the tokenizer does not know words of the positive
                  sentences, so that the model has not learned them, or the picture is unlike a radiograph, as coloured
                  ones, noise and a single grey are; or where the map says little, as it is minus that of such words
            for a list of pictures a list of these, for a stream an iterator.

        Raises:
            ValueError: for options that are not as above, or a picture that cannot be read (the message names it).
        """
        asked = self.defaults.replaced(
            findings=_one_of(findings, candidate_labels),
            positive_template=positive_template,
            negative_template=negative_template,
            maps=maps,
            map_kind=map_kind,
            no_finding=no_finding,
            frame=frame,
        )
        images = _single_list_or_stream(images)
        if isinstance(images, list) and not images:
            return []
        shown = {"maps": asked.maps, "map_kind": asked.map_kind, "no_finding": asked.no_finding}
        return super().__call__(images, prompts=asked.prompts(), frame=asked.frame, **shown, **kwargs)

    def word_maps(
        self,
        image,
        sentence: str | list[str],
        frame: int | None = None,
        map_kind: str | None = None,
        no_finding: str | list[str] | None = None,
    ) -> Any:
        """
        Where the single words of a sentence point.

        Args:
            image: one picture, as [`load_radiograph`] reads it, or a list.
            sentence: a text, or a list. Its words are what stands between spaces, without punctuation at their ends.
            frame: of files of several frames, the one to read, counted from 1.
            map_kind, no_finding: as for a call of the pipeline.

        Returns:
            `{"words": [W words], "maps": float32 array (W, H, W'), "grid": as of a call}`: for each word its map
            over the pixels of the original picture, as `maps="array"`; of a word of several tokens
            their mean. Words that the tokenizer cuts off are missing. A list of these for a list of pictures or of
            sentences; two lists must be of one length, and go together item by item.

        Raises:
            ValueError: if the sentence has no word, or the tokenizer cannot tell where its tokens stand.
        """
        images = _single_list_or_stream(image)
        if isinstance(images, list) or isinstance(sentence, (list, tuple)):
            images = images if isinstance(images, list) else [images] * len(sentence)
            sentences = list(sentence) if isinstance(sentence, (list, tuple)) else [sentence] * len(images)
            if len(images) != len(sentences):
                raise ValueError(f"{len(images)} pictures and {len(sentences)} sentences do not go together.")
            return [self.word_maps(*pair, frame, map_kind, no_finding) for pair in zip(images, sentences)]
        if not isinstance(sentence, str):
            raise ValueError(f"sentence must be a text or a list of texts; got {type(sentence).__name__}.")
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not tell where its tokens stand; use a fast tokenizer.")
        inputs = self.processor(text=sentence, return_offsets_mapping=True)
        self._check_tokens(inputs["input_ids"])
        words = words_of(sentence, inputs.pop("offset_mapping")[0].tolist())
        if not words:
            raise ValueError(f"The sentence {sentence!r} has no word.")
        seen = self.preprocess(images, frame=frame)
        with self.device_placement(), torch.no_grad():
            pixel_values = seen["pixel_values"].to(self.device)
            asked = self.defaults.replaced(map_kind=map_kind, no_finding=no_finding)
            tokens = l2_normalize(self.model.encode_text(**inputs.to(self.device)).local_embeds[0].float())
            shown = self._shown(tokens, asked.map_kind, asked.no_finding)
            maps = self._maps(shown, self.model.encode_image(pixel_values), asked.map_kind)[0]
            coarse = torch.stack([maps[positions].mean(dim=0) for _, positions in words]).cpu().numpy()
        maps = self._over_picture(coarse, seen)
        return {"words": [word for word, _ in words], "maps": maps, "grid": coarse.shape[1:]}

    def save_pretrained(self, save_directory, **kwargs):
        """Write model, processor and code: a folder from which this pipeline can be loaded again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self, prompts=None, maps=None, map_kind="cosine", no_finding=NO_FINDING, frame=None, **unknown
    ):
        if unknown:
            raise ValueError(f"Unknown option {next(iter(unknown))!r} of {type(self).__name__}.")
        given = {"maps": maps} if maps else {}
        read = given | ({"frame": frame} if frame else {})
        shown = given | {"map_kind": map_kind, "no_finding": no_finding, "prompts": prompts or {}}
        return read, shown, shown

    def preprocess(self, image, maps=None, frame=None) -> dict:
        picture = open_radiograph(image, self.processor.reading_options(frame))
        unlike, picture = unlike_radiograph(picture), picture.convert("RGB")
        framed = self.processor.framing(picture)
        pixel_values = self.processor.image_processor(framed, return_tensors="pt")["pixel_values"].to(self.dtype)
        seen = {"pixel_values": pixel_values, "size": picture.size, "input_size": tuple(pixel_values.shape[-2:])}
        return seen | {"unlike": unlike} | ({"picture": picture} if maps == "overlay" else {})

    def _forward(self, inputs, prompts, maps=None, map_kind="cosine", no_finding=NO_FINDING) -> dict:
        # Text first: a sentence that cannot be embedded costs no image.
        texts = self._embed([lists[key] for key in ("positive", "negative") for lists in prompts.values()])
        positive, negative = texts.chunk(2)  # (F, D) each
        shown = self._shown(positive, map_kind, no_finding) if maps else None
        image = self.model.encode_image(inputs["pixel_values"])
        image_embeds = l2_normalize(image.embeds.float())
        answer = {
            "positive": image_embeds @ positive.to(image_embeds.device).T,  # (N, F)
            "negative": image_embeds @ negative.to(image_embeds.device).T,
        }
        if maps:
            answer["maps"] = self._maps(shown, image, map_kind)
        return answer | {name: inputs[name] for name in ("size", "input_size", "unlike", "picture") if name in inputs}

    def _shown(self, texts: torch.Tensor, kind: str, no_finding: tuple[str, ...]) -> torch.Tensor:
        """What maps of that kind show of R texts or tokens (R, D), of unit length."""
        return texts - self._embed([no_finding]).to(texts.device) if kind.endswith(MINUS_NO_FINDING) else texts

    def _maps(self, texts: torch.Tensor, image: Any, kind: str) -> torch.Tensor:
        """Maps (N, R, h, w) of what is shown of R texts (R, D) over the patches of N images, a `TierEncoding`."""
        patches = l2_normalize(image.local_embeds.float())
        maps = texts.to(patches.device) @ patches.transpose(1, 2)
        if kind.startswith("contribution"):
            maps = maps * self.model.patch_weights(image).unsqueeze(1)
        return maps.unflatten(2, image.grid)

    def postprocess(self, answer, prompts, maps=None, map_kind="cosine", no_finding=NO_FINDING) -> list[dict]:
        positive, negative = (answer[name][0].double() for name in ("positive", "negative"))
        difference = positive - negative
        score = torch.sigmoid(math.exp(self.model.logit_scale.item()) * difference)
        if not score.isfinite().all():
            raise ValueError("The model gives NaN for this picture or these sentences (half precision?).")
        rows = [
            {"finding": finding, "score": score[i].item(), "difference": difference[i].item()}
            for i, finding in enumerate(prompts)
        ]
        also_shown = no_finding if maps and map_kind.endswith(MINUS_NO_FINDING) else ()
        for row, sentences in zip(rows, prompts.values()):
            texts = [note(answer["unlike"], self._unknown_words(sentences["positive"]))]
            if unknown := self._unknown_words(also_shown):
                texts.append(f"The map is minus that of words that the tokenizer does not know: {', '.join(unknown)}.")
            if any(texts):
                row["note"] = " ".join(filter(None, texts))
        if maps:
            contributions = map_kind.startswith("contribution")
            limit = 1 / math.prod(answer["maps"].shape[2:]) if contributions else 1.0
            for row, fine in zip(rows, self._over_picture(answer["maps"][0].numpy(), answer)):
                if maps == "array":
                    row.update(map=fine, grid=tuple(answer["maps"].shape[2:]))
                else:
                    row["overlay"] = overlay_map(answer["picture"], fine, limit)
        return rows

    def _embed(self, lists: list[tuple[str, ...]]) -> torch.Tensor:
        """One embedding (L, D) for each list of sentences: each normalised, then their mean normalised."""
        # Weights that were moved, trained or loaded anew make other embeddings.
        weights = [*self.model.text_model.parameters(), *self.model.text_projection.parameters()]
        embedded_by = [
            (weight.data_ptr(), weight.dtype, weight.is_inference() or weight._version) for weight in weights
        ]
        if embedded_by != self._embedded_by:
            self._embeds, self._embedded_by = {}, embedded_by
        missing = [sentences for sentences in dict.fromkeys(lists) if sentences not in self._embeds]
        if missing:
            distinct = list(dict.fromkeys(sentence for sentences in missing for sentence in sentences))
            by_sentence = dict(zip(distinct, self._embed_sentences(distinct)))
            for sentences in missing:
                embeds = torch.stack([by_sentence[sentence] for sentence in sentences])
                self._embeds[sentences] = l2_normalize(embeds.mean(dim=0))
        kept = torch.stack([self._embeds[sentences] for sentences in lists])
        while len(self._embeds) > _MAX_KEPT:
            del self._embeds[next(iter(self._embeds))]  # the oldest
        return kept

    def _embed_sentences(self, sentences: list[str]) -> torch.Tensor:
        """Normalised embeddings (S, D)."""
        embeds = []
        for start in range(0, len(sentences), _SENTENCES_PER_STEP):
            text = self.processor(text=sentences[start : start + _SENTENCES_PER_STEP])
            self._check_tokens(text["input_ids"])
            embeds.append(self.model.get_text_features(**text.to(self.device)).pooler_output.float())
        return l2_normalize(torch.cat(embeds))

    def _check_tokens(self, input_ids: torch.Tensor) -> None:
        """Raise ValueError if they are not of this model's vocabulary, or more than its text encoder has positions."""
        config = self.model.config.text_config
        vocabulary, positions = getattr(config, "vocab_size", None), max_text_length(config)
        if vocabulary and input_ids.max() >= vocabulary:
            raise ValueError(
                f"The tokenizer gives the token id {input_ids.max()}, but the model's vocabulary has {vocabulary}: "
                "processor and model do not belong together."
            )
        if positions and input_ids.shape[1] > positions:
            raise ValueError(
                f"A sentence has {input_ids.shape[1]} tokens, but the text encoder has {positions} positions: set "
                "model_max_length of the processor's tokenizer to what the model was trained with."
            )

    def _unknown_words(self, sentences: tuple[str, ...]) -> tuple[str, ...]:
        if sentences not in self._unknown:
            tokenizer = self.processor.tokenizer
            words: list[str] = []
            for sentence in sentences if tokenizer.is_fast else ():
                tokens = tokenizer(sentence, return_offsets_mapping=True)
                words += unknown_words(sentence, tokens["input_ids"], tokens["offset_mapping"], tokenizer.unk_token_id)
            if len(self._unknown) >= _MAX_KEPT:
                self._unknown.clear()
            self._unknown[sentences] = tuple(dict.fromkeys(words))
        return self._unknown[sentences]

    def _over_picture(self, coarse: np.ndarray, seen: dict) -> np.ndarray:
        """From maps (F, h, w) on the patch grid to the pixels (F, H, W) of the original picture."""
        scale, offset, input_size = picture_geometry(seen["size"], self.processor)
        if input_size != seen["input_size"][::-1]:
            raise ValueError(
                f"The image processor makes {seen['input_size'][::-1]} of a picture of {seen['size']} where its "
                f"options say {input_size}: its map cannot be laid over the picture."
            )
        across, down = (
            interpolation(seen["size"][axis], scale[axis], offset[axis], input_size[axis], coarse.shape[2 - axis])
            for axis in (0, 1)
        )
        return down @ coarse.astype(np.float32) @ across.T


class TierImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """
    transformers' zero-shot image classification, with pictures read by [`load_radiograph`]: its own reader turns 16
    bits white. Of another model than TIER's, pictures are read as transformers does.
    """

    _framing: Framing | None = None

    def preprocess(self, image, *args, **kwargs):
        if self.model.config.model_type == "tier":
            image = self._framed(open_radiograph(image).convert("RGB"))
            kwargs["tokenizer_kwargs"] = {"truncation": True} | (kwargs.get("tokenizer_kwargs") or {})
        return super().preprocess(image, *args, **kwargs)

    def _framed(self, picture: Image.Image) -> Image.Image:
        """As the processor in the model's folder frames it: this pipeline loads the image processor alone."""
        if self._framing is None:
            self._framing = _framing_of(self.model)
        return self._framing(picture)


def _framing_of(model) -> Framing:
    """
    How the processor of the folder or repository that a model was loaded from frames pictures, by its file alone:
    loading the processor would ask whether its code may run. Without a folder, or a processor in it: not at all.
    """
    source = getattr(model, "name_or_path", "")
    try:
        revision = getattr(model.config, "_commit_hash", None)
        options = TierProcessor.get_processor_dict(source, revision=revision)[0] if source else {}
    except OSError:
        options = {}
    return Framing(**{field.name: options[field.name] for field in fields(Framing) if field.name in options})


def _processor_of(model) -> TierProcessor:
    """The processor of the folder or repository that a model was loaded from."""
    source = getattr(model, "name_or_path", "")
    if not source:
        raise ValueError("The pipeline needs the model's processor: pass processor=TierProcessor(...).")
    try:
        return TierProcessor.from_pretrained(source)
    except OSError as error:
        raise ValueError(
            f"The pipeline needs the model's processor, and {source} has none: pass processor=TierProcessor(...)."
        ) from error


def _one_of(findings, candidate_labels):
    if findings is not None and candidate_labels is not None:
        raise ValueError("findings and candidate_labels are two names of one option: give one of them.")
    return candidate_labels if findings is None else findings


def _prompts(findings, positive_template, negative_template) -> dict[str, dict[str, tuple[str, ...]]]:
    if isinstance(findings, str):
        findings = [findings]
    if isinstance(findings, np.ndarray):
        findings = findings.tolist()
    if not isinstance(findings, (dict, list, tuple)) or not findings:
        raise ValueError(f"findings must be a list of at least one name, or a dict by name; got {findings!r}.")
    if not all(isinstance(name, str) and name.strip() for name in findings):
        raise ValueError(f"findings must be names; got {list(findings)!r}.")
    if isinstance(findings, dict):
        return {name: _sentences(name, lists) for name, lists in findings.items()}
    if len(set(findings)) < len(findings):
        raise ValueError(f"A finding is named twice in {list(findings)!r}.")
    templates = {
        "positive": _templates("positive_template", positive_template),
        "negative": _templates("negative_template", negative_template),
    }
    return {
        name: {
            kind: tuple(template.replace("{}", name.replace("_", " ")) for template in those)
            for kind, those in templates.items()
        }
        for name in findings
    }


def _sentences(name: str, lists) -> dict[str, tuple[str, ...]]:
    if not isinstance(lists, dict) or set(lists) != {"positive", "negative"}:
        raise ValueError(f"The finding {name!r} needs the two lists 'positive' and 'negative'; got {lists!r}.")
    for kind, sentences in lists.items():
        is_list = isinstance(sentences, (list, tuple)) and len(sentences) > 0
        if not is_list or not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences):
            raise ValueError(f"{name}: {kind!r} must be a list of at least one sentence; got {sentences!r}.")
    return {kind: tuple(sentences) for kind, sentences in lists.items()}


def _templates(option: str, templates) -> list[str]:
    templates = [templates] if isinstance(templates, str) else templates
    if not isinstance(templates, (list, tuple)) or not templates:
        raise ValueError(f"{option} must be a sentence or a list of sentences; got {templates!r}.")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"{option} {template!r} must have {{}} where the finding's name goes.")
    return list(templates)


def _single_list_or_stream(images: Any) -> Any:
    """What Pipeline understands: a single picture, a list, or a generator or data set for a stream."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":  # paths
        return images.tolist()
    if hasattr(images, "ndim"):  # an array or a tensor; 4-dimensional it is a batch
        return list(images) if images.ndim == 4 else images
    if isinstance(images, tuple):
        return list(images)
    if isinstance(images, (list, torch.utils.data.Dataset)) or not isinstance(images, Iterable):
        return images
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, dict)) or hasattr(images, "read"):
        return images
    return (image for image in images)


# By task, as config.json names them for a process without this package.
SAVED_PIPELINES = {
    TASK: {"impl": f"pipeline_tier.{TierZeroShotPipeline.__name__}", "pt": ["AutoModel"]},
    CAPTION_TASK: {
        "impl": f"pipeline_tier.{TierImageClassificationPipeline.__name__}",
        "pt": ["AutoModelForZeroShotImageClassification"],
    },
}
