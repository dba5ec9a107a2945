# Licensed under the Apache License, Version 2.0.
"""
Findings in a radiograph with ONNX Runtime, without torch: it lies as run.py in every exported folder, beside
`tier_reading`, the package's own files that read pictures.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


try:
    from ..framing_tier import Framing
    from ..notes_tier import note, unknown_words, unlike_radiograph
    from ..reading_tier import ReadingOptions, open_radiograph
except ImportError:  # as run.py
    sys.path.insert(0, str(Path(__file__).parent))
    from tier_reading.framing_tier import Framing  # type: ignore
    from tier_reading.notes_tier import note, unknown_words, unlike_radiograph  # type: ignore
    from tier_reading.reading_tier import ReadingOptions, open_radiograph  # type: ignore


class Reader:
    """
    The two encoders of an exported folder.

        read = Reader(".")
        read("radiograph.png", ["left pleural effusion", "cardiomegaly"])

    Pictures are read as the package reads them: a path, a URL, bytes, a `PIL.Image`, an array, DICOM files where
    `pydicom` is installed; see `load_radiograph`.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.settings = json.loads((folder / "tier.json").read_text())
        self.image_settings = json.loads((folder / "preprocessor_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding(**self.settings["padding"])
        self.tokenizer.no_truncation()
        if self.settings["max_tokens"]:
            self.tokenizer.enable_truncation(self.settings["max_tokens"])
        self.image_encoder, self.text_encoder = (
            onnxruntime.InferenceSession(folder / f"{name}_encoder.onnx", providers=["CPUExecutionProvider"])
            for name in ("image", "text")
        )

    def __call__(
        self,
        image: Any,
        findings: list[str],
        positive: str = "{}.",
        negative: str = "No {}.",
        frame: int | None = None,
    ) -> list[dict]:
        """
        For each finding `score` in [0, 1] (not a calibrated probability), `difference` of the two cosines, and `map`:
        cosines (h, w) of the patches with the positive sentence, rows from top to bottom of what the model sees.
        `frame` is that of a file of several, counted from 1. `note` is there only where the score says little: the
        tokenizer does not know words of the finding, or the picture is unlike a radiograph.
        """
        picture = self._opened(image, frame)
        image_embeds, patches = self._embed_pixels(self._prepared(picture))
        texts = [
            template.replace("{}", name.replace("_", " ")) for template in (positive, negative) for name in findings
        ]
        positive_embeds, negative_embeds = np.split(self.embed_text(texts), 2)  # (F, D) each
        difference = (positive_embeds.astype(np.float64) - negative_embeds.astype(np.float64)) @ image_embeds
        score = 0.5 * (1 + np.tanh(0.5 * self.settings["temperature"] * difference))
        maps = (positive_embeds @ patches.T).reshape(len(findings), *self.settings["grid"])
        rows = [
            {"finding": name, "score": float(score[i]), "difference": float(difference[i]), "map": maps[i]}
            for i, name in enumerate(findings)
        ]
        unlike = unlike_radiograph(picture)
        for row, text in zip(rows, texts):
            tokens = self.tokenizer.encode(text)
            why = note(unlike, unknown_words(text, tokens.ids, tokens.offsets, self.settings["unknown_id"]))
            if why:
                row["note"] = why
        return rows

    def embed_image(self, image: Any, frame: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (D,) of a picture and (P, D) of its patches, of unit length."""
        return self._embed_pixels(self.pixel_values(image, frame))

    def _embed_pixels(self, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, patches = self.image_encoder.run(["image_embeds", "patch_embeds"], {"pixel_values": pixel_values[None]})
        return image[0], patches[0]

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Embeddings (M, D) of texts, of unit length."""
        return self.text_encoder.run(["text_embeds"], self.tokens(texts))[0]

    def tokens(self, texts: list[str]) -> dict[str, np.ndarray]:
        encoded = self.tokenizer.encode_batch(texts)
        inputs = {
            "input_ids": np.array([entry.ids for entry in encoded], dtype=np.int64),
            "attention_mask": np.array([entry.attention_mask for entry in encoded], dtype=np.int64),
        }
        return {entry.name: inputs[entry.name] for entry in self.text_encoder.get_inputs()}

    def pixel_values(self, image: Any, frame: int | None = None) -> np.ndarray:
        """What the image encoder takes: (3, H, W)."""
        return self._prepared(self._opened(image, frame))

    def _opened(self, image: Any, frame: int | None) -> Image.Image:
        return open_radiograph(image, ReadingOptions(frame, **self.settings["reading"]))

    def _prepared(self, picture: Image.Image) -> np.ndarray:
        settings, picture = self.image_settings, Framing(**self.settings["framing"])(picture.convert("RGB"))
        if settings.get("do_resize"):
            size, (width, height) = settings["size"], picture.size
            if size.get("shortest_edge"):
                shortest = size["shortest_edge"]
                longest = int(shortest * max(width, height) / min(width, height))
                new_size = (shortest, longest) if width <= height else (longest, shortest)
            else:
                new_size = size["width"], size["height"]
            picture = picture.resize(new_size, settings["resample"])
        if settings.get("do_center_crop"):
            width, height = settings["crop_size"]["width"], settings["crop_size"]["height"]
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        pixels = np.asarray(picture, dtype=np.float32)
        if settings.get("do_rescale"):
            pixels = pixels * np.float32(settings["rescale_factor"])
        if settings.get("do_normalize"):
            pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
        return pixels.transpose(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Findings in a radiograph. Not for diagnosis.",
        epilog='Example: python run.py radiograph.png "left pleural effusion" cardiomegaly --maps maps.npz',
    )
    parser.add_argument("image", help="path or URL of a PNG, JPEG, TIFF, DICOM, ... file")
    parser.add_argument("findings", nargs="+", metavar="finding", help="each as words of a report")
    parser.add_argument("--maps", metavar="FILE.npz", help="write `findings` (F) and their `maps` (F, h, w)")
    parser.add_argument("--frame", type=int, help="needed for a file of several frames; counted from 1")
    arguments = parser.parse_args()
    try:
        rows = Reader(Path(__file__).parent)(arguments.image, arguments.findings, frame=arguments.frame)
        if arguments.maps:
            np.savez(arguments.maps, findings=arguments.findings, maps=[row["map"] for row in rows])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    for row in rows:
        print(f"{row['score']:.4f}  {row['finding']}  (difference of the cosines {row['difference']:+.4f})")
        if "note" in row:
            print(f"        {row['note']}")


if __name__ == "__main__":
    main()
