# Licensed under the Apache License, Version 2.0.
"""The zero-shot pipeline: findings as independent yes/no questions, and where in the picture their words point."""

import math
import re
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

from .entropy_tier import l2_normalize
from .reading_tier import open_radiograph


TASK = "tier-zero-shot"
MAPS = (None, "array", "overlay")

_SENTENCES_A_STEP = 64
_MOST_KEPT = 4096  # lists of sentences: some 10 MB of embeddings

# Colour-blind readers tell these two apart, and both from grey.
_POSITIVE, _NEGATIVE = (255, 140, 0), (0, 114, 255)
_OPACITY = 0.7


class TierZeroShotPipeline(Pipeline):
    """
    Does a radiograph show these findings? Each is a question of its own: positive against negative sentences.

        read = pipeline("tier-zero-shot", model="user/name", trust_remote_code=True)
        read("radiograph.png", findings=["left pleural effusion", "cardiomegaly"])
        # [{"finding": "left pleural effusion", "score": 0.71, "difference": 0.12}, ...]

    Sentences are embedded once and kept. The model is put into evaluation mode.

    Args:
        model ([`TierModel`]): the model.
        processor ([`TierProcessor`]): its processor.
        **kwargs: options of every pipeline of transformers: `device`, `batch_size`, `num_workers`, ...
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("The pipeline needs the model's processor: pass processor=TierProcessor(...).")
        self.model.eval()
        self._embeds: dict[tuple[str, ...], torch.Tensor] = {}
        self._embedded_by = None

    def __call__(
        self,
        images,
        findings,
        positive_template: str | list[str] = "{}.",
        negative_template: str | list[str] = "No {}.",
        maps: str | None = None,
        **kwargs,
    ):
        """
        Args:
            images: one picture as [`load_radiograph`] reads it (a path, URL, DICOM file, `PIL.Image`, array), a list
                or a batch of them, or a stream: a generator, a `KeyDataset`, anything else to iterate over.
            findings (`list[str]` or `dict`): names, which are put into the templates (an underscore as a space); or
                for each name its sentences, `{"positive": [...], "negative": [...]}`.
            positive_template, negative_template (`str` or `list[str]`): sentences that say that the finding is there,
                and that it is not, with `{}` for its name.
            maps (`str`, *optional*): `"array"` or `"overlay"` adds the map of each finding's positive sentences.
            **kwargs: `batch_size` and `num_workers`.

        Returns:
            for one picture a list, in the order of `findings`, of
                - `finding`: its name
                - `score`: in [0, 1], the softmax over the two cosines times exp(logit_scale); above 0.5 if the
                  picture is nearer to the positive sentences. It is not a calibrated probability
                - `difference`: cos(image, positive) - cos(image, negative), of the normalised means of the
                  sentences' embeddings
                - `map` (`maps="array"`): float32 array (H, W) over the pixels of the original picture, cosines of the
                  patches with the positive embedding, bilinear in between; NaN where the processor cuts the picture
                - `overlay` (`maps="overlay"`): this map over the picture, as [`overlay_map`] paints it
            for a list of pictures a list of these, for a stream an iterator.

        Raises:
            ValueError: for findings, templates or `maps` that are not as above, or a picture that cannot be read (the
                message names it).
        """
        if maps not in MAPS:
            raise ValueError(f"maps must be one of {list(MAPS)}; got {maps!r}.")
        prompts = _prompts(findings, positive_template, negative_template)
        images = _single_list_or_stream(images)
        if isinstance(images, list) and not images:
            return []
        return super().__call__(images, prompts=prompts, maps=maps, **kwargs)

    def word_maps(self, image, sentence: str) -> dict:
        """
        Where the single words of a sentence point.

        Args:
            image: one picture, as [`load_radiograph`] reads it.
            sentence: a text. Its words are what stands between spaces, without punctuation at their ends.

        Returns:
            `{"words": [W words], "maps": float32 array (W, H, W')}`: for each word the cosines with the patches over
            the pixels of the original picture, as `maps="array"`; of a word of several tokens their mean. Words that
            the tokenizer cuts off are left out.

        Raises:
            ValueError: if the sentence has no word, or the tokenizer cannot tell where its tokens stand.
        """
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not tell where its tokens stand; use a fast tokenizer.")
        inputs = tokenizer(sentence, truncation=True, return_offsets_mapping=True, return_tensors="pt")
        words = _words(sentence, inputs.pop("offset_mapping")[0].tolist())
        if not words:
            raise ValueError(f"The sentence {sentence!r} has no word.")
        seen = self.preprocess(image)
        with self.device_placement(), torch.no_grad():
            pixel_values = seen["pixel_values"].to(self.device)
            tokens = self.model.get_similarity_map(pixel_values, **inputs.to(self.device)).token_to_patch[0]
            coarse = torch.stack([tokens[positions].mean(dim=0) for _, positions in words]).float().cpu().numpy()
        return {"words": [word for word, _ in words], "maps": self._over_picture(coarse, seen)}

    def save_pretrained(self, save_directory, **kwargs):
        """Write model, processor and code: a folder from which this pipeline can be loaded again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, prompts=None, maps=None):
        given = {"maps": maps} if maps else {}
        return given, given | ({"prompts": prompts} if prompts else {}), given | {"findings": list(prompts or ())}

    def preprocess(self, image, maps=None) -> dict:
        picture = open_radiograph(image, self.processor.reading_options()).convert("RGB")
        pixel_values = self.processor.image_processor(picture, return_tensors="pt")["pixel_values"].to(self.dtype)
        seen = {"pixel_values": pixel_values, "size": picture.size, "input_size": tuple(pixel_values.shape[-2:])}
        return seen | ({"picture": picture} if maps == "overlay" else {})

    def _forward(self, inputs, prompts, maps=None) -> dict:
        # Text first: a sentence that cannot be embedded costs no image.
        texts = self._embed([lists[key] for key in ("positive", "negative") for lists in prompts.values()])
        positive, negative = texts.chunk(2)  # (F, D) each
        outputs, patch_embeds, grid = self.model._encode_image(inputs["pixel_values"])
        image_embeds = l2_normalize(outputs.pooler_output.float())
        found = {
            "positive": image_embeds @ positive.to(image_embeds.device).T,  # (N, F)
            "negative": image_embeds @ negative.to(image_embeds.device).T,
        }
        if maps:
            patches = l2_normalize(patch_embeds.float())
            cosines = positive.to(patches.device) @ patches.transpose(1, 2)  # (N, F, P)
            found["maps"] = cosines.unflatten(2, grid)
        return found | {name: inputs[name] for name in ("size", "input_size", "picture") if name in inputs}

    def postprocess(self, found, findings, maps=None) -> list[dict]:
        positive, negative = (found[name][0].double() for name in ("positive", "negative"))
        difference = positive - negative
        score = torch.sigmoid(math.exp(self.model.logit_scale.item()) * difference)
        if not score.isfinite().all():
            raise ValueError("The model gives NaN for this picture or these sentences (half precision?).")
        rows = [
            {"finding": finding, "score": score[i].item(), "difference": difference[i].item()}
            for i, finding in enumerate(findings)
        ]
        if maps:
            for row, fine in zip(rows, self._over_picture(found["maps"][0].numpy(), found)):
                if maps == "array":
                    row["map"] = fine
                else:
                    row["overlay"] = overlay_map(found["picture"], fine)
        return rows

    def _embed(self, lists: list[tuple[str, ...]]) -> torch.Tensor:
        """One embedding (L, D) for each list of sentences: each normalised, then their mean normalised."""
        # Weights that were moved, trained or loaded anew make other embeddings.
        weights = [*self.model.text_model.parameters(), *self.model.text_projection.parameters()]
        embedded_by = [(each.data_ptr(), each.dtype, each.is_inference() or each._version) for each in weights]
        if embedded_by != self._embedded_by:
            self._embeds, self._embedded_by = {}, embedded_by
        missing = [sentences for sentences in dict.fromkeys(lists) if sentences not in self._embeds]
        if missing:
            every = list(dict.fromkeys(sentence for sentences in missing for sentence in sentences))
            embeds = []
            for start in range(0, len(every), _SENTENCES_A_STEP):
                text = self.processor(
                    text=every[start : start + _SENTENCES_A_STEP], padding=True, truncation=True, return_tensors="pt"
                )
                embeds.append(self.model.get_text_features(**text.to(self.device)).pooler_output.float())
            of = dict(zip(every, l2_normalize(torch.cat(embeds))))
            for sentences in missing:
                self._embeds[sentences] = l2_normalize(torch.stack([of[each] for each in sentences]).mean(dim=0))
        found = torch.stack([self._embeds[sentences] for sentences in lists])
        while len(self._embeds) > _MOST_KEPT:
            del self._embeds[next(iter(self._embeds))]  # the oldest
        return found

    def _over_picture(self, coarse: np.ndarray, seen: dict) -> np.ndarray:
        """From maps (F, h, w) on the patch grid to the pixels (F, H, W) of the original picture."""
        scale, offset, input_size = picture_geometry(seen["size"], self.processor.image_processor)
        if input_size != seen["input_size"][::-1]:
            raise ValueError(
                f"The image processor makes {seen['input_size'][::-1]} of a picture of {seen['size']} where its "
                f"options say {input_size}: its map cannot be laid over the picture."
            )
        across, down = (
            _interpolation(*axis, cells)
            for *axis, cells in zip(seen["size"], scale, offset, input_size, coarse.shape[:0:-1])
        )
        return down @ coarse.astype(np.float32) @ across.T


def overlay_map(picture: Image.Image, cosines: np.ndarray, limit: float = 1.0) -> Image.Image:
    """
    Paint a map over its picture: orange where the cosine is positive, blue where it is negative, bare where it is NaN.

    Args:
        picture: of W x H pixels.
        cosines: (H, W).
        limit: the cosine, up or down, at which the colour covers 70% of the picture; it fades in proportion to 0. The
            same for all maps that are to be compared.

    Returns:
        an RGB picture of W x H pixels.
    """
    opacity = _OPACITY * np.clip(np.nan_to_num(np.abs(cosines)) / limit, 0, 1)[..., None]
    colour = np.where(cosines[..., None] > 0, np.float32(_POSITIVE), np.float32(_NEGATIVE))
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return Image.fromarray(np.round(pixels + opacity * (colour - pixels)).astype(np.uint8))


def picture_geometry(size: tuple[int, int], image_processor):
    """
    What an image processor does to a picture of `size` (width, height): three pairs, of x and y.

    Returns:
        the factors of its resizing, the offset of its centre crop in the resized picture (negative where it pads), and
        the width and height of the result.

    Raises:
        ValueError: if it resizes in a way that is not known here.
    """
    width, height = resized = size
    if getattr(image_processor, "do_resize", False):
        wanted = image_processor.size
        shortest = wanted.get("shortest_edge")
        if getattr(image_processor, "crop_pct", None) is not None or wanted.get("longest_edge"):
            raise ValueError(
                f"A map cannot follow how {type(image_processor).__name__} resizes: by edge and crop_pct."
            )
        if shortest:
            longest = int(shortest * max(size) / min(size))
            resized = (shortest, longest) if width <= height else (longest, shortest)
        elif wanted.get("height") and wanted.get("width"):
            resized = wanted["width"], wanted["height"]
        else:
            raise ValueError(f"A map cannot follow a resizing by {dict(wanted)}: only edges or height and width.")
    kept = resized
    if getattr(image_processor, "do_center_crop", False):
        kept = image_processor.crop_size["width"], image_processor.crop_size["height"]
    offset = tuple((whole - part) // 2 for whole, part in zip(resized, kept))
    return (resized[0] / width, resized[1] / height), offset, kept


def _interpolation(length: int, scale: float, offset: int, input_length: int, cells: int) -> np.ndarray:
    """
    Weights (length, cells) by which the pixels along one side of the picture are made of the cells of the patch grid:
    linear between the centres of the cells, constant beyond the outer ones, NaN for pixels outside of the input.
    """
    place = (np.arange(length) + 0.5) * scale - offset
    cell = np.clip(place * cells / input_length - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(cells)))
    weights[(place < 0) | (place > input_length)] = np.nan
    return weights.astype(np.float32)


def _prompts(findings, positive_template, negative_template) -> dict[str, dict[str, tuple[str, ...]]]:
    if isinstance(findings, str):
        findings = [findings]
    if not isinstance(findings, (dict, list, tuple)) or not findings:
        raise ValueError(f"findings must be a list of at least one name, or a dict by name; got {findings!r}.")
    if not all(isinstance(name, str) and name.strip() for name in findings):
        raise ValueError(f"findings must be names; got {list(findings)!r}.")
    if isinstance(findings, dict):
        return {name: _sentences(name, lists) for name, lists in findings.items()}
    if len(set(findings)) < len(findings):
        raise ValueError(f"A finding stands twice in {list(findings)!r}.")
    templates = {
        "positive": _templates("positive_template", positive_template),
        "negative": _templates("negative_template", negative_template),
    }
    return {
        name: {key: tuple(each.replace("{}", name.replace("_", " ")) for each in t) for key, t in templates.items()}
        for name in findings
    }


def _sentences(name: str, lists) -> dict[str, tuple[str, ...]]:
    if not isinstance(lists, dict) or set(lists) != {"positive", "negative"}:
        raise ValueError(f"The finding {name!r} needs the two lists 'positive' and 'negative'; got {lists!r}.")
    for key, each in lists.items():
        if not isinstance(each, (list, tuple)) or not each or not all(isinstance(s, str) and s.strip() for s in each):
            raise ValueError(f"{name}: {key!r} must be a list of at least one sentence; got {each!r}.")
    return {key: tuple(sentences) for key, sentences in lists.items()}


def _templates(option: str, templates) -> list[str]:
    templates = [templates] if isinstance(templates, str) else templates
    if not isinstance(templates, (list, tuple)) or not templates:
        raise ValueError(f"{option} must be a sentence or a list of sentences; got {templates!r}.")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"{option} {template!r} must have the place {{}} for the finding's name.")
    return list(templates)


def _single_list_or_stream(images):
    """What Pipeline understands: a single picture, a list, or a generator or data set for a stream."""
    if hasattr(images, "ndim"):  # an array or a tensor; 4-dimensional it is a batch
        return list(images) if images.ndim == 4 else images
    if isinstance(images, tuple):
        return list(images)
    if isinstance(images, (str, list, torch.utils.data.Dataset)) or not isinstance(images, Iterable):
        return images
    return (image for image in images)


def _words(sentence: str, offsets: list[list[int]]) -> list[tuple[str, list[int]]]:
    """The words of a sentence, each with the positions of its tokens; tokens without letter or digit are of none."""
    words = []
    for match in re.finditer(r"\S+", sentence):
        of_word = [
            i for i, token in enumerate(offsets) if match.start() <= _first_letter(sentence, token) < match.end()
        ]
        if of_word:
            words.append((re.sub(r"^\W+|\W+$", "", match.group()), of_word))
    return words


def _first_letter(sentence: str, token: list[int]) -> int:
    """Place of a token's first letter or digit; -1 for special tokens and punctuation."""
    return next((place for place in range(*token) if sentence[place].isalnum()), -1)
