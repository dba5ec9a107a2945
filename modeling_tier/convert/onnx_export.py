# Licensed under the Apache License, Version 2.0.
"""
A model's two encoders as ONNX graphs, with a program that reads radiographs by them without torch.

The exporter is that of transformers itself (`transformers.exporters`), over `torch.onnx`; optimum-onnx 0.1.0 asks for
a transformers before 4.58.
"""

import contextlib
import io
import logging
import math
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import set_verbosity_error

from ..cosines_tier import l2_normalize
from ..files import merged_folder, replace_json
from ..loading import load_model
from ..maps_tier import picture_geometry
from ..modeling_tier import TierModel, TierOutput, TierPreTrainedModel
from ..processing_tier import TierProcessor


TOLERANCE = 1e-4  # of an embedding's numbers, so of cosines

_TEXTS = ["There is a small left pleural effusion.", "No cardiomegaly.", "Clear."]
_DYNAMIC = torch.export.Dim.DYNAMIC
_READING_FILES = ("reading_tier.py", "dicom_tier.py", "framing_tier.py", "maps_tier.py", "notes_tier.py")
_READING_OPTIONS = ("dicom_contrast", "max_pixels", "max_aspect_ratio")
_OTHER_PIXELS = 0.1  # of a pixel value: what two libraries make of one rounding is less, another resizing far more


class ImageEncoder(TierPreTrainedModel):
    """The half of a TierModel that the first graph holds."""

    main_input_name = "pixel_values"

    def __init__(self, model: TierModel):
        super().__init__(model.config)
        self.tier = model

    def forward(self, pixel_values) -> dict[str, torch.Tensor]:
        image = self.tier.encode_image(pixel_values)
        return {"image_embeds": l2_normalize(image.embeds), "patch_embeds": l2_normalize(image.local_embeds)}


class TextEncoder(TierPreTrainedModel):
    """The other half."""

    def __init__(self, model: TierModel):
        super().__init__(model.config)
        self.tier = model

    def forward(self, input_ids, attention_mask=None) -> dict[str, torch.Tensor]:
        text = self.tier.encode_text(input_ids, attention_mask)
        return {"text_embeds": l2_normalize(text.embeds), "token_embeds": l2_normalize(text.local_embeds)}


def export_onnx(model: TierModel, processor: TierProcessor, output_dir: str | Path) -> None:
    """
    Write a folder that needs neither torch nor transformers: only onnxruntime, tokenizers, numpy and Pillow.

    Args:
        model: the model; it is turned to float32 and to the CPU.
        processor: its processor, with a fast tokenizer and an image processor that makes all pictures one size.
        output_dir: the folder. It gets `image_encoder.onnx` (`pixel_values` (N, 3, H, W) to `image_embeds` (N, D) and
            `patch_embeds` (N, P, D)) and `text_encoder.onnx` (`input_ids` and, where the
            tokenizer makes one, `attention_mask` (M, T) to `text_embeds`
            (M, D) and `token_embeds` (M, T, D)), all embeddings of unit length, N, M and T free, the weights in
            `*.onnx.data`; the tokenizer's and the image processor's files; `tier.json` with the temperature
            exp(logit_scale), the patch grid (h, w), how texts are cut and padded and how pictures are read; `run.py`
            and `tier_reading`, the package's own files that read pictures.

    Raises:
        ValueError: if an encoder cannot be exported, or the exported one gives other numbers than the model, in which
            case nothing is written.
        ImportError: if onnx, onnxscript or onnxruntime is not installed.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json, by which texts are read without torch.")
    model = model.float().cpu().eval()
    pictures = [_noise(0, (150, 100)), _noise(1, (100, 150))]
    picture_geometry(pictures[0].size, processor.image_processor)  # for its errors: run.py knows no other resizing
    pixel_values = [processor(images=picture)["pixel_values"] for picture in pictures]
    if pixel_values[0].shape != pixel_values[1].shape:
        shapes = [tuple(values.shape[2:]) for values in pixel_values]
        raise ValueError(
            f"The image processor makes pictures of several sizes, such as {shapes}: an ONNX graph has one."
        )
    text = processor(text=_TEXTS)
    image_inputs = {"pixel_values": torch.cat(pixel_values)}
    text_inputs = {
        name: text[name] for name in ("input_ids", "attention_mask") if name in text
    }  # SigLIP's has no mask
    # As the model itself is fed, with what else the tokenizer makes.
    with torch.no_grad():
        grid = model.encode_image(image_inputs["pixel_values"]).grid
        expected = model(**text, **image_inputs)

    with merged_folder(output_dir, last="run.py") as folder:
        _write_graph(ImageEncoder(model), image_inputs, {0: _DYNAMIC}, folder / "image_encoder.onnx", expected)
        _write_graph(
            TextEncoder(model), text_inputs, {0: _DYNAMIC, 1: _DYNAMIC}, folder / "text_encoder.onnx", expected
        )
        tokenizer.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        replace_json(folder / "tier.json", _settings(model, processor, grid))
        _copy_program(folder)
        _check_inputs(folder, pictures, image_inputs, text_inputs)


def _settings(model: TierModel, processor: TierProcessor, grid: tuple[int, int]) -> dict:
    """What run.py needs to know beside both graphs."""
    tokenizer = processor.tokenizer
    limit = tokenizer.model_max_length
    return {
        "temperature": math.exp(model.logit_scale.item()),
        "grid": list(grid),
        "max_tokens": limit if limit < 1e9 else None,  # transformers' way to say that there is none
        "padding": {
            "direction": tokenizer.padding_side,
            "pad_id": tokenizer.pad_token_id,
            "pad_token": tokenizer.pad_token,
        },
        "unknown_id": tokenizer.unk_token_id,
        "framing": asdict(processor.framing),
        "reading": {name: getattr(processor, name) for name in _READING_OPTIONS},
    }


def _copy_program(folder: Path) -> None:
    shutil.copyfile(Path(__file__).with_name("run_onnx.py"), folder / "run.py")
    package = folder / "tier_reading"
    package.mkdir()
    (package / "__init__.py").write_text('"""How pictures are read; these files are those of modeling_tier."""\n')
    for name in _READING_FILES:
        shutil.copyfile(Path(__file__).parents[1] / name, package / name)


def _write_graph(encoder: TierPreTrainedModel, inputs: dict, dynamic: dict, path: Path, expected: TierOutput) -> None:
    """Raises ValueError unless the written graph computes `expected`, also for another number of inputs."""
    from onnxruntime import InferenceSession
    from transformers.exporters import OnnxConfig, OnnxExporter

    exporter, config = OnnxExporter(), encoder.tier.config
    model_type = (config.vision_config if "pixel_values" in inputs else config.text_config).model_type
    try:
        exported = exporter.export(encoder.eval(), inputs, OnnxConfig(dynamic_shapes=dict.fromkeys(inputs, dynamic)))
    except Exception as error:  # tracing runs any code of any encoder
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"The encoder {model_type!r} cannot be exported to ONNX: {reason}") from error
    exporter.save_program(exported.program, path)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for rows in (slice(None), slice(0, 1)):
        outputs = session.run(names, {name: values[rows].numpy() for name, values in inputs.items()})
        for name, values in zip(names, outputs):
            difference = np.abs(values - expected[name][rows].numpy()).max()
            if not difference < TOLERANCE:
                raise ValueError(f"{model_type!r} as ONNX gives other {name} than the model, by {difference:.2g}.")


def _check_inputs(folder: Path, pictures: list[Image.Image], image_inputs: dict, text_inputs: dict) -> None:
    """Raise ValueError unless the folder's program makes the same inputs of pictures and texts as the processor."""
    from .run_onnx import Reader

    reader = Reader(folder)
    for picture, expected in zip(pictures, image_inputs["pixel_values"].numpy()):
        if not np.abs(reader.pixel_values(picture) - expected).max() < _OTHER_PIXELS:
            raise ValueError("The image processor does more than resize, crop, rescale and normalise: run.py cannot.")
    tokens = reader.tokens(_TEXTS)
    for name, expected in text_inputs.items():
        if not np.array_equal(tokens[name], expected.numpy()):
            raise ValueError(f"tokenizer.json alone gives other {name} than the tokenizer.")


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).convert("RGB")


def run(model: str, output_dir: str) -> None:
    """The work of `python -m modeling_tier.export`, whose options are in `tier_cli/commands/export.py`."""
    # The exporter tells of its own affairs at length, once a graph.
    set_verbosity_error()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            export_onnx(*load_model(model), output_dir)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{output_dir}: try python {Path(output_dir) / 'run.py'} RADIOGRAPH FINDING ...")
