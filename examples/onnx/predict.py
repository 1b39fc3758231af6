"""Classify pictures with an .onnx that ConvLens exported, by onnxruntime and Pillow alone.

python predict.py model.onnx PICTURE...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
facts = session.get_modelmeta().custom_metadata_map
classes, spec = json.loads(facts["classes"]), json.loads(facts["config"])["input"]
(height, width), mode, bicubic = spec["size"], "L" if spec["channels"] == 1 else "RGB", Image.Resampling.BICUBIC

for path in sys.argv[2:]:
    picture = Image.open(path)
    picture.draft(None, (max(height, width),) * 2)  # a large JPEG is decoded only as finely as needed
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit gray, which convert() would clip
        picture = Image.fromarray((np.asarray(picture, np.int64).clip(0, 65_535) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert(mode)
    if spec["resize"] == "crop":
        picture = ImageOps.fit(picture, (width, height), bicubic)
    elif spec["resize"] == "fit":
        scale = min(width / picture.width, height / picture.height)
        whole = picture.resize([max(round(side * scale), 1) for side in picture.size], bicubic)
        picture = Image.new(mode, (width, height))
        picture.paste(whole, ((width - whole.width) // 2, (height - whole.height) // 2))
    else:
        picture = picture.resize((width, height), bicubic)
    pixels = np.array(picture).reshape(1, height, width, -1).transpose(0, 3, 1, 2)
    probabilities = session.run(["probabilities"], {"images": np.ascontiguousarray(pixels)})[0][0]
    print(f"{path},{classes[probabilities.argmax()]},{probabilities.max():.6f}")
