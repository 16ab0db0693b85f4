"""The two views of a take, frame by frame.

Inputs: a `Script`, a `Look`, the frame times and the height in pixels. Outputs: uint8 frames [Y, X, 3]. What stands
still is drawn once; a frame is a cut-out of it, moved by the camera, with head, hands and distractors on top.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hwm.data.toyworld.head import HeadStyle, direction_to, head_sprite
from hwm.data.toyworld.look import EXO_TALL, HEAD_CENTRE, HEAD_RADIUS, Look
from hwm.data.toyworld.objects import object_sprite
from hwm.data.toyworld.raster import NOISE_ROOM, Colour, Limb, Sprite, blit, limb_sprite
from hwm.data.toyworld.room import ball_sprite, ego_room, exo_room, lamp_shade, vignette
from hwm.data.toyworld.rules import Script
from hwm.data.toyworld.timeline import GazeState, HandState, looks_at, objects_at, waves

EXO_MARGIN = 0.04
"""Room around the exo view for camera jitter, units of the frame height."""
EGO_MARGIN = 0.2
"""Room around the ego view for panning."""
_ANGLE_STEP = np.deg2rad(2.0)
"""Head directions are rounded to this, so that a drawn head can be used again."""


_TOOLS: dict[str, tuple[float, Colour]] = {"knife": (0.013, (226, 230, 236)), "spoon": (0.009, (190, 138, 82))}
"""Half the thickness (of the arm's size) and colour of the knife and of the wooden spoon."""


class Views(NamedTuple):
    """Sizes of the two views in pixels."""

    height: int
    exo_width: int

    @staticmethod
    def of(height: int) -> "Views":
        """16:9, both sides even as H.264's 4:2:0 needs."""
        even = height - height % 2
        return Views(even, 2 * round(even * 16 / 9 / 2))


class CameraTrack(NamedTuple):
    """Whole-pixel place (row, column) of each view's top left corner on its larger still picture, [S, 2] int64."""

    exo: np.ndarray
    ego: np.ndarray


def cameras_at(look: Look, gaze: GazeState, views: Views, times_sec: np.ndarray) -> CameraTrack:
    """Where both cameras look; whole pixels, so that still parts are copied and points are exactly known."""
    exo = look.exo_shift + look.exo_sway * waves(times_sec, look.exo_phases, (0.25, 0.6))
    return CameraTrack(
        np.round((exo[:, ::-1] + EXO_MARGIN) * views.height).astype(np.int64),
        np.round((gaze.pan[:, ::-1] + EGO_MARGIN) * views.height).astype(np.int64),
    )


def exo_normalised(points: np.ndarray, cameras: CameraTrack, views: Views) -> np.ndarray:
    """Exo units [S, 2] → 0..1 of the exo frame, x over its width, [S, 2]."""
    size = np.array([views.exo_width, views.height], float)
    left = (views.exo_width - views.height) / 2
    pixels = points * views.height + np.array([left, 0.0]) + round(EXO_MARGIN * views.height) - cameras.exo[:, ::-1]
    return pixels / size


def ego_normalised(points: np.ndarray, cameras: CameraTrack, views: Views) -> np.ndarray:
    """Ego units before panning [S, 2] → 0..1 of the ego frame, [S, 2]."""
    return (points * views.height + round(EGO_MARGIN * views.height) - cameras.ego[:, ::-1]) / views.height


def _pixel(value: float) -> int:
    return int(np.floor(value + 0.5))


def _object_sprites(look: Look, tall: np.ndarray, height: int) -> list[tuple[Sprite, Sprite]]:
    return [
        (
            object_sprite(kind, False, round(size * height), look.light),
            object_sprite(kind, True, round(size * height), look.light),
        )
        for kind, size in zip(look.kinds, tall, strict=True)
    ]


class _Table:
    """Draws room and objects; as long as nothing on the table moves or changes its look, the picture is used again."""

    def __init__(
        self, room: np.ndarray, sprites: list[tuple[Sprite, Sprite]], feet: np.ndarray, size: int, shift: np.ndarray
    ) -> None:
        """Take where each object's foot is at each time, [S, objects, 2] in units of `size`, from `shift` pixels on."""
        self.room, self.sprites = room, sprites
        self.places = np.floor(feet * size + shift + 0.5).astype(np.int64)
        self.shown: tuple[bytes, bytes] | None = None
        self.canvas = room

    def draw(self, index: int, changed: np.ndarray) -> np.ndarray:
        """The table at time number `index`, with objects in their present looks; the farther ones first."""
        places = self.places[index]
        shown = places.tobytes(), changed.tobytes()
        if shown != self.shown:
            self.shown, self.canvas = shown, self.room.copy()
            for item in np.argsort(places[:, 1], kind="stable"):
                column, row = places[item].tolist()
                blit(self.canvas, self.sprites[item][int(changed[item])], row, column)
        return self.canvas


class _Arms:
    """Draws both arms; an arm that was drawn before, to half a pixel, is used again."""

    def __init__(self, look: Look, shoulders: np.ndarray, outward: np.ndarray, size: float) -> None:
        """Take shoulders [2, 2] in pixels, the side [2, 2] to which each elbow bends, and the size of the arm."""
        self.shoulders, self.outward, self.size = shoulders, outward, size
        self.sleeve, self.skin = _scale(look.shirt, look.light), _scale(look.skin, look.light)
        self.drawn: dict[tuple[int, int, int, str], Sprite] = {}

    def draw(self, frame: np.ndarray, hands: np.ndarray, tools: tuple[str, str], row: int, column: int) -> None:
        """Draw arms that end at `hands` [2, 2] (x, y) pixels from (row, column), with what they hold."""
        for side in (0, 1):
            x, y = (int(value) for value in np.round(2 * hands[side]))
            key = (side, x, y, tools[side])
            if key not in self.drawn:
                self.drawn[key] = self._arm(side, np.array([x, y]) / 2, tools[side])
            blit(frame, self.drawn[key], row, column)

    def _arm(self, side: int, hand: np.ndarray, tool: str) -> Sprite:
        shoulder, size = self.shoulders[side], self.size
        straight = hand - shoulder
        bend = 0.3 * max(0.62 * size - float(np.hypot(*straight)), 0.0)
        elbow = shoulder + 0.52 * straight + bend * self.outward[side]
        wrist = elbow + 0.80 * (hand - elbow)
        sleeve = Limb(((shoulder, elbow, 0.042 * size), (elbow, wrist, 0.037 * size)), self.sleeve)
        bare = Limb(((wrist, hand, 0.029 * size), (hand, hand, 0.040 * size)), self.skin)
        held: tuple[Limb, ...] = ()
        if tool:
            lean = hand + size * np.array([-0.03 * self.outward[side][0], 0.10])
            held = (Limb(((hand, lean, _TOOLS[tool][0] * size),), _TOOLS[tool][1]),)
        return limb_sprite((*held, bare, sleeve))


def _scale(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(int(value * factor), 255) for value in colour)
    return red, green, blue


class _Lamp:
    """Draws the swinging lamp; one that was drawn before, to a degree, is used again."""

    def __init__(self, look: Look, size: int) -> None:
        self.hook = np.array([0.13 if look.window_side else 0.87, -0.06]) * size
        self.length, self.shade = 0.24 * size, lamp_shade(look, size)
        self.cord: dict[int, Sprite] = {}

    def draw(self, frame: np.ndarray, angle: float, row: int, column: int) -> None:
        """Draw the lamp at an angle (radians) from the vertical, with its coordinates' origin at (row, column)."""
        degree = round(float(np.rad2deg(angle)))
        end = self.hook + self.length * np.array([np.sin(np.deg2rad(degree)), np.cos(np.deg2rad(degree))])
        if degree not in self.cord:
            self.cord[degree] = limb_sprite((Limb(((self.hook, end, 0.1),), (96, 90, 92)),))
        blit(frame, self.cord[degree], row, column)
        blit(frame, self.shade, row + _pixel(end[1]), column + _pixel(end[0]))


class _Noise:
    """Pixel noise: one field, cut out at another place for each frame."""

    def __init__(self, look: Look, height: int, width: int, rng: np.random.Generator) -> None:
        self.extra = 61
        field = np.round(rng.normal(0.0, look.noise, (height + self.extra, width + self.extra, 1)))
        field = np.clip(field, -NOISE_ROOM, NOISE_ROOM).repeat(3, axis=2)
        # As 8-bit numbers that wrap around: adding 255 takes 1 away.
        self.field = field.astype(np.int8).view(np.uint8)
        self.rng, self.size = rng, (height, width)

    def add(self, frame: np.ndarray) -> np.ndarray:
        """The uint8 frame, all of whose values are within the room for noise, plus fresh noise."""
        row, column = self.rng.integers(self.extra, size=2)
        return frame + self.field[row : row + self.size[0], column : column + self.size[1]]


def exo_frames(
    script: Script, look: Look, gaze: GazeState, hands: HandState, cameras: CameraTrack, views: Views,
    times_sec: np.ndarray, rng: np.random.Generator,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The view from outside: uint8 [Y, X, 3], one frame a time."""
    size, margin = views.height, round(EXO_MARGIN * views.height)
    room = exo_room(look, views.height, views.exo_width, margin)
    sprites = _object_sprites(look, np.full(len(look.kinds), EXO_TALL), size)
    shift = np.array([(views.exo_width - size) // 2 + margin, margin])
    table = _Table(room, sprites, look.exo_base + objects_at(script, look, times_sec).exo, size, shift)
    changed = looks_at(script, len(look.kinds), times_sec)
    style = HeadStyle(HEAD_RADIUS * size, look.skin, look.hair, look.hair_style, look.light)
    heads: dict[tuple[int, int], Sprite] = {}
    ball, lamp = ball_sprite(look, round(0.075 * size)), _Lamp(look, size)
    side = np.array([[-1.0, 0.1], [1.0, 0.1]])
    arms = _Arms(look, np.array([[0.352, 0.402], [0.648, 0.402]]) * size, side, size)
    noise = _Noise(look, views.height, views.exo_width, rng)
    balls, angles = ball_places(look, times_sec), lamp_angles(look, times_sec)
    for index in range(len(times_sec)):
        still = table.draw(index, changed[index])
        top, left = cameras.exo[index]
        frame = still[top : top + views.height, left : left + views.exo_width].copy()
        origin = shift - np.array([left, top])
        column, row = (int(value) for value in origin)
        yaw, pitch = direction_to(HEAD_CENTRE, gaze.head[index])
        key = round(yaw / _ANGLE_STEP), round(pitch / _ANGLE_STEP)
        if key not in heads:
            heads[key] = head_sprite(style, key[0] * _ANGLE_STEP, key[1] * _ANGLE_STEP)
        centre = np.array(HEAD_CENTRE) * size + origin
        blit(frame, heads[key], _pixel(centre[1]), _pixel(centre[0]))
        lamp.draw(frame, angles[index], row, column)
        spot = balls[index] * size + origin
        blit(frame, ball, _pixel(spot[1]), _pixel(spot[0]))
        arms.draw(frame, hands.exo[index] * size, hands.tools[index], row, column)
        yield noise.add(frame)


def ball_places(look: Look, times_sec: np.ndarray) -> np.ndarray:
    """The rolling ball, [S, 2] exo units: to and fro along the front edge of the worktop."""
    a, b, c = look.ball_phases
    x = 0.5 + 0.27 * np.sin(0.9 * times_sec + a) + 0.16 * np.sin(1.7 * times_sec + b)
    y = 0.968 + 0.006 * np.sin(0.6 * times_sec + c)
    return np.stack([x, y], axis=-1)


def lamp_angles(look: Look, times_sec: np.ndarray) -> np.ndarray:
    """The swinging lamp, [S] radians from the vertical."""
    return 0.32 * np.sin(2 * np.pi * look.lamp_rate_hz * times_sec + look.lamp_phase)


def ego_frames(
    script: Script, look: Look, hands: HandState, cameras: CameraTrack, views: Views, times_sec: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The view of the person: uint8 [Y, Y, 3], upright, one frame a time."""
    size, margin = views.height, round(EGO_MARGIN * views.height)
    room = ego_room(look, size, margin)
    sprites = _object_sprites(look, look.ego_tall, size)
    table = _Table(room, sprites, look.ego_base + objects_at(script, look, times_sec).ego, size, np.array(margin))
    changed = looks_at(script, len(look.kinds), times_sec)
    ball = ball_sprite(look, round(0.06 * size))
    # Seen by the person, the right hand (0) is on the right.
    arms = _Arms(look, np.array([[0.80, 1.16], [0.20, 1.16]]) * size, np.array([[1.0, 0.0], [-1.0, 0.0]]), 1.3 * size)
    noise, dark = _Noise(look, size, size, rng), vignette(size)
    balls = ball_places(look, times_sec)
    balls = np.stack([0.5 - 0.8 * (balls[:, 0] - 0.5), 0.28 - (balls[:, 1] - 0.968)], axis=-1)
    for index in range(len(times_sec)):
        still = table.draw(index, changed[index])
        top, left = cameras.ego[index]
        frame = still[top : top + size, left : left + size].copy()
        column, row = margin - int(left), margin - int(top)
        origin = np.array([column, row])
        spot = balls[index] * size + origin
        blit(frame, ball, _pixel(spot[1]), _pixel(spot[0]))
        arms.draw(frame, hands.ego[index] * size, hands.tools[index], row, column)
        yield noise.add(np.maximum((frame * dark) >> 8, NOISE_ROOM).astype(np.uint8))
