"""The eight kinds of object, each in two looks, drawn in a box of 100 x 100 whose foot is at y = 96.

Shapes and colours are kept far apart, so that a small network (and a reader of a thumbnail) can tell them.
"""

from collections.abc import Callable

from hwm.data.toyworld.raster import Pen, Sprite, make_sprite

_DARK = (38, 36, 44, 255)


def _kettle(pen: Pen, changed: bool) -> None:
    blue, shade = (58, 112, 204, 255), (38, 78, 156, 255)
    pen.arc((22, 6, 74, 62), 180, 360, _DARK, 7)
    pen.polygon((70, 52, 97, 34, 99, 42, 80, 74), shade)
    pen.ellipse((12, 34, 84, 98), shade)
    pen.ellipse((12, 32, 80, 94), blue)
    pen.ellipse((24, 42, 42, 62), (150, 188, 244, 255))
    if changed:
        pen.polygon((30, 36, 66, 36, 84, 10, 78, 6), _DARK)
        pen.ellipse((44, 68, 62, 86), (255, 84, 60, 255))
    else:
        pen.ellipse((28, 28, 66, 42), _DARK)


def _mug(pen: Pen, changed: bool) -> None:
    red, shade = (214, 48, 50, 255), (160, 30, 36, 255)
    pen.arc((60, 42, 98, 82), 0, 360, shade, 9)
    pen.box((14, 34, 76, 96), shade, 10)
    pen.box((14, 32, 72, 94), red, 10)
    pen.ellipse((14, 22, 76, 48), shade)
    pen.ellipse((19, 26, 71, 45), (98, 58, 30, 255) if changed else (255, 246, 236, 255))
    if changed:
        pen.arc((30, 0, 46, 22), 90, 270, (250, 250, 250, 210), 5)
        pen.arc((46, 2, 62, 22), 270, 90, (250, 250, 250, 210), 5)
    pen.box((26, 56, 38, 84), (246, 130, 128, 255), 6)


def _carton(pen: Pen, changed: bool) -> None:
    pen.box((24, 36, 76, 96), (248, 248, 252, 255), 3)
    pen.box((62, 36, 76, 96), (212, 214, 226, 255), 3)
    pen.box((24, 58, 76, 84), (242, 120, 172, 255))
    pen.ellipse((38, 62, 60, 80), (255, 255, 255, 255))
    if changed:
        pen.polygon((24, 37, 76, 37, 92, 20, 8, 20), (226, 228, 240, 255))
        pen.polygon((24, 37, 76, 37, 66, 28, 34, 28), (242, 120, 172, 255))
    else:
        pen.polygon((24, 37, 76, 37, 64, 16, 36, 16), (226, 228, 240, 255))
        pen.box((35, 6, 65, 18), (242, 120, 172, 255), 2)


def _jar(pen: Pen, changed: bool) -> None:
    pen.box((20, 32, 80, 96), (252, 236, 186, 255), 16)
    pen.box((24, 66 if changed else 38, 76, 92), (246, 178, 22, 255), 12)
    pen.box((30, 62, 60, 84), (255, 250, 230, 255), 4)
    if changed:
        pen.line((52, 70, 78, 4), (120, 84, 48, 255), 7)
        pen.ellipse((20, 27, 80, 40), (226, 204, 140, 255))
    else:
        pen.box((16, 16, 84, 36), (150, 96, 30, 255), 5)


def _bread(pen: Pen, changed: bool) -> None:
    crust, crumb = (150, 84, 34, 255), (250, 220, 160, 255)
    pen.box((0, 84, 100, 97), (104, 66, 40, 255), 4)
    if changed:
        pen.box((2, 44, 46, 88), crust, 18)
        for left in (40, 62):
            pen.box((left, 42, left + 32, 88), crust, 14)
            pen.box((left + 5, 48, left + 27, 84), crumb, 10)
    else:
        pen.box((2, 40, 98, 88), crust, 24)
        pen.box((6, 42, 92, 70), (204, 132, 62, 255), 20)
        for left in (22, 44, 66):
            pen.line((left, 62, left + 10, 46), crumb, 5)


def _pan(pen: Pen, changed: bool) -> None:
    pen.line((70, 70, 98, 40), (86, 54, 34, 255), 11)
    pen.ellipse((0, 50, 82, 98), (20, 20, 24, 255))
    pen.ellipse((4, 50, 78, 88), (66, 66, 74, 255))
    if changed:
        pen.ellipse((14, 54, 66, 84), (255, 252, 244, 255))
        pen.ellipse((32, 58, 54, 76), (255, 190, 20, 255))
    else:
        pen.ellipse((12, 55, 70, 83), (36, 36, 42, 255))


def _bowl(pen: Pen, changed: bool) -> None:
    purple, shade = (142, 96, 200, 255), (98, 60, 152, 255)
    if changed:
        for box in ((14, 24, 50, 62), (36, 16, 70, 60), (56, 26, 88, 62)):
            pen.ellipse(box, (92, 190, 76, 255))
        pen.ellipse((34, 32, 52, 50), (238, 76, 62, 255))
    pen.pie((2, 4, 98, 96), 0, 180, shade)
    pen.pie((2, 6, 90, 92), 0, 180, purple)
    pen.box((32, 88, 68, 97), shade, 2)
    pen.ellipse((2, 42, 98, 60), shade)
    pen.ellipse((8, 44, 92, 57), (92, 190, 76, 255) if changed else (244, 236, 252, 255))


def _bottle(pen: Pen, changed: bool) -> None:
    green, shade = (44, 150, 84, 255), (24, 104, 58, 255)
    pen.box((39, 8, 61, 50), shade, 4)
    pen.box((24, 36, 78, 97), shade, 16)
    pen.box((24, 36, 70, 96), green, 16)
    if changed:
        pen.box((29, 42, 66, 72), (196, 236, 204, 255), 10)
    else:
        pen.box((36, 0, 64, 14), (224, 190, 90, 255), 3)
    pen.box((26, 62, 70, 84), (250, 240, 160, 255), 2)


_DRAW: dict[str, Callable[[Pen, bool], None]] = {
    "kettle": _kettle,
    "mug": _mug,
    "carton": _carton,
    "jar": _jar,
    "bread": _bread,
    "pan": _pan,
    "bowl": _bowl,
    "bottle": _bottle,
}


def object_sprite(kind: str, changed: bool, tall_px: int, light: float) -> Sprite:
    """Draw one object, `tall_px` high, with its soft shadow; the anchor is the middle of its foot."""
    # The shadow needs room beside and below the object: the picture is 1.3 times as wide and 1.1 times as high.
    width, height = round(1.3 * tall_px), round(1.1 * tall_px)
    shadow = Pen(width, height)
    shadow.ellipse((8, 76, 96, 99), (20, 14, 10, 70))
    shadow.ellipse((14, 79, 90, 96), (20, 14, 10, 90))
    image = shadow.done()
    pen = Pen(tall_px, tall_px)
    _DRAW[kind](pen, changed)
    image.alpha_composite(pen.done(), ((width - tall_px) // 2, 0))
    return make_sprite(image, (round(0.96 * tall_px), width // 2), light)
