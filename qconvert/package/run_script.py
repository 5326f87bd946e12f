"""A script that runs an engine on images, or on arrays, without qconvert.

It prepares images by the same steps as `qconvert.images`, with the same rounding, and reads boxes
and masks by the functions of `qconvert.tasks`, whose source it holds.
"""

from dataclasses import dataclass
from string import Template

from qconvert.backends.base import LoadSpec
from qconvert.core.tensors import fixed_batch
from qconvert.images.preprocess import LETTERBOX_LEVEL, ImageInput, Preprocess
from qconvert.package import bundle as bundles
from qconvert.package.bundle import Bundle
from qconvert.package.session_code import python_string, session_code
from qconvert.tasks.decoders import MASK_LAYOUTS
from qconvert.tasks.script import decoder_functions

PLACE_CROPPED = Template("""\
    scaled = $scaled
    return scaled, [-round((whole - part) / 2) for whole, part in zip(scaled, SIZE)]""")

RESIZE_CROPPED = """\
    # Resize only the part of the image that the crop leaves.
    factors = [whole / part for whole, part in zip(image.size, scaled)]
    left, top = (-offset for offset in corner)
    right = min((left + SIZE[0]) * factors[0], image.width)
    bottom = min((top + SIZE[1]) * factors[1], image.height)
    image = image.resize(SIZE, method, (left * factors[0], top * factors[1], right, bottom))"""

FIT_CHECK = Template("""
    if any(whole $unfit part for whole, part in zip(place(image.size)[0], SIZE)):
        sys.exit(f"{file}: {image.width}x{image.height} does not fit")""")

PLACE_LETTERBOX = """\
    # All of the image, in the middle of a gray box.
    scale = min(part / whole for part, whole in zip(SIZE, size))
    scaled = [max(1, round(side * scale)) for side in size]
    return scaled, [(part - whole) // 2 for part, whole in zip(SIZE, scaled)]"""

RESIZE_LETTERBOX = f"""\
    box = Image.new(image.mode, SIZE, ({LETTERBOX_LEVEL},) * len(image.getbands()))
    box.paste(image.resize(scaled, method), tuple(corner))
    image = box"""

CLASS_NAME = 'return f"class {number}"'
CLASS_NAME_IN_FILE = 'return CLASSES[number] if 0 <= number < len(CLASSES) else f"class {number}"'
CLASSES_LINE = """\
CLASSES = (HERE / "classes.txt").read_text(encoding="utf-8").splitlines()
"""

THRESHOLD_ARGUMENT = """\
parser.add_argument("--threshold", type=float, default=0.25, help="lowest score (%(default)s)")
"""
MASKS_ARGUMENT = """\
parser.add_argument("--masks", type=Path, metavar="FOLDER", help="write the classes of pixels here")
"""

PRINT_SCORES = Template("""\
for file in files:
    scores = run(read_image(file))[$output][0].ravel()
    for number in scores.argsort()[::-1][:5]:
        print(f"{file}: {class_name(number)} {scores[number]:.6g}")""")

PRINT_BOXES = """\
for file in files:
    image = read_image(file)
    objects = [
        (class_name(number), score, box)
        for box, score, number in find_objects(run(image), image.size)
        if score > arguments.threshold
    ]
    for name, score, box in objects:
        print(f"{file}: {name} {score:.4f}", *(f"{edge:.2f}" for edge in box))
    if not objects:
        print(f"{file}: no object of a score above {arguments.threshold}", file=sys.stderr)"""

PRINT_PIXELS = """\
for file in files:
    image = read_image(file)
    classes = class_map(run(image), image.size)
    numbers, counts = np.unique(classes[classes != OUTSIDE], return_counts=True)
    for index in counts.argsort()[::-1]:
        print(f"{file}: {class_name(numbers[index])} {counts[index] / counts.sum():.4f}")
    if arguments.masks is not None:
        save_mask(classes, arguments.masks / f"{Path(file).stem}.png")"""

PRINT_OUTPUTS = Template("""\
for file in files:
    for name, array in run($read(file)).items():
        print(f"{file}: {name} {array.shape}, {array.min():.6g} to {array.max():.6g}")""")


@dataclass(frozen=True)
class Part:
    """What a script does with outputs: functions, arguments of the command, and its main loop."""

    functions: str
    arguments: str
    loop: str


def run_script(bundle: Bundle, spec: LoadSpec) -> str:
    """Return the program."""
    run_options = ", run_options(feeds)" if spec.profiles else ""
    code = {
        "name": bundle.name,
        "session": session_code(bundle.engine, spec),
        "run_options": run_options,
    }
    if bundle.preparation is None:
        loop = PRINT_OUTPUTS.substitute(read="read_arrays")
        return bundles.fill_template("run_arrays.py.tmpl", **code, loop=loop)
    preprocess, image_input = bundle.preparation
    batch = fixed_batch(bundle.inputs) or 1
    part = reading_part(bundle)
    return bundles.fill_template(
        "run_images.py.tmpl",
        **code,
        **preparation_code(preprocess, image_input),
        future="from __future__ import annotations\n\n" if bundle.head else "",
        dataclass="from dataclasses import dataclass\n" if bundle.head else "",
        typing="from numpy.typing import NDArray\n" if bundle.head else "",
        array="prepare(image)" if batch == 1 else f"np.repeat(prepare(image), {batch}, 0)",
        classes=CLASSES_LINE if bundle.classes else "",
        class_name=CLASS_NAME_IN_FILE if bundle.classes else CLASS_NAME,
        functions=part.functions,
        arguments=part.arguments,
        loop=part.loop,
    )


def reading_part(bundle: Bundle) -> Part:
    """Return code that prints boxes, shares of pixels, class scores, or the range of outputs."""
    if bundle.head is None:
        if bundle.scores is None:
            return Part("", "", PRINT_OUTPUTS.substitute(read="read_image"))
        output = python_string(bundle.scores.name)
        return Part("", "", PRINT_SCORES.substitute(output=output))
    is_mask = bundle.head.layout in MASK_LAYOUTS
    functions = bundles.fill_template(
        "masks.py.tmpl" if is_mask else "boxes.py.tmpl", decoder=decoder_functions(bundle.head)
    )
    if is_mask:
        return Part(functions, MASKS_ARGUMENT, PRINT_PIXELS)
    return Part(functions, THRESHOLD_ARGUMENT, PRINT_BOXES)


def preparation_code(preprocess: Preprocess, image_input: ImageInput) -> dict[str, str]:
    """Return the code that reads and prepares an image, by the placeholders of the template."""
    values = bundles.preprocess_values(preprocess, image_input)
    lines = "".join(f"    {literal(key)}: {literal(value)},\n" for key, value in values.items())
    scaled = 'PREPROCESS["resize"]' if isinstance(preprocess.resize, tuple) else "size"
    if isinstance(preprocess.resize, int):
        scaled = '[int(PREPROCESS["resize"] * side / min(size)) for side in size]'
    unfit = "!=" if preprocess.crop == "none" else "<"
    boxed = preprocess.letterbox
    return {
        "preprocess": f"{{\n{lines}}}",
        "mode": "L" if image_input.channels == 1 else "RGB",
        "place": PLACE_LETTERBOX if boxed else PLACE_CROPPED.substitute(scaled=scaled),
        "resize": RESIZE_LETTERBOX if boxed else RESIZE_CROPPED,
        "fit_check": "" if boxed else FIT_CHECK.safe_substitute(unfit=unfit),
        "order": "[..., ::-1]" if preprocess.colours == "bgr" else "",
        "layout": ".transpose(2, 0, 1)" if image_input.layout == "nchw" else "",
    }


def literal(value: object) -> str:
    """Return a value as Python; names may be anything."""
    return python_string(value) if isinstance(value, str) else repr(value)
