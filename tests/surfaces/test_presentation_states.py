"""Pictures of presentation states over the fakes, pixel by pixel beside what numpy makes of them (REND-10)."""

import time
from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.corpus import CORPUS
from tests.surfaces.fakes import document, made, split, surface
from tests.surfaces.test_dicomweb_rendered import item, lookup, words

GRAYSCALE, COLOR, PSEUDO_COLOR = (f"1.2.840.10008.5.1.4.1.1.11.{n}" for n in (1, 2, 3))
SERIES = "/dicomweb/studies/1.2.3/series/1.2.3.5"
RENDERED = f"{SERIES}/instances/1.2.3.5.1/rendered"
THUMBNAIL = f"{SERIES}/instances/1.2.3.5.1/thumbnail"
ROWS, COLUMNS = 40, 60
VALUES = np.add.outer(np.arange(ROWS) * 10, np.arange(COLUMNS) * 20).astype("<u2")
"""Up to 1570, of 12 bits: a ramp that looks different however it is turned."""


def image(number: int = 1, values: NDArray[Any] = VALUES, **attributes: Any) -> Dataset:
    several = {"NumberOfFrames": len(values)} if values.ndim == 3 else {}
    rows, columns = values.shape[-2:]
    attributes = {"RescaleSlope": 3, "RescaleIntercept": -7, "WindowCenter": 1, "WindowWidth": 1} | attributes
    attributes |= {"Rows": rows, "Columns": columns, "BitsStored": 12, "HighBit": 11, "PixelData": values.tobytes()}
    return made(number, **several, **attributes)


def about(*numbers: int, frames: Sequence[int] = ()) -> Items:
    """References to images."""
    told = []
    for number in numbers:
        one = item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.7", ReferencedSOPInstanceUID=f"1.2.3.4.{number}")
        if frames:
            one.ReferencedFrameNumber = list(frames)
        told.append(one)
    return Items(told)


def area(left: int, top: int, right: int, bottom: int, **attributes: Any) -> Dataset:
    return item(
        DisplayedAreaTopLeftHandCorner=[left, top],
        DisplayedAreaBottomRightHandCorner=[right, bottom],
        PresentationSizeMode="SCALE TO FIT",
        **attributes,
    )


def state(*images: int, frames: Sequence[int] = (), sop_class: str = GRAYSCALE, **attributes: Any) -> Dataset:
    """A presentation state about these images, the first one by default; without a window or table."""
    shown = item(SeriesInstanceUID="1.2.3.4", ReferencedImageSequence=about(*(images or (1,)), frames=frames))
    attributes = {"ReferencedSeriesSequence": Items([shown]), "PresentationLUTShape": "IDENTITY"} | attributes
    source = document(1, SOPClassUID=sop_class, Modality="PR", **attributes)
    source.SeriesInstanceUID, source.SOPInstanceUID = "1.2.3.5", "1.2.3.5.1"
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    return source


def picture(*data_sets: Dataset, query: str = "", path: str = RENDERED) -> NDArray[np.uint8]:
    answer = surface(data_sets).get(f"{path}?{query}" if query else path, "image/png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    return np.asarray(imagecodecs.png_decode(answer.content))


def shades(values: NDArray[Any], low: float = 0, high: float = 4095) -> NDArray[np.uint8]:
    return np.rint(((values.astype(float) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)


def window(center: float, width: float, **attributes: Any) -> Dataset:
    return item(WindowCenter=center, WindowWidth=width, **attributes)


PLAIN = shades(VALUES)


# --- shades ----------------------------------------------------------------------------------------------------------


def test_what_the_state_leaves_out_is_not_taken_from_the_image() -> None:
    """PS3.4 N.2.1: neither its rescaling nor its window; without one, all values that the samples can have."""
    assert np.array_equal(picture(image(), state()), PLAIN)
    assert np.array_equal(picture(image(PhotometricInterpretation="MONOCHROME1"), state()), PLAIN)


def test_windows_and_rescaling_are_those_of_the_state() -> None:
    source = state(RescaleSlope=2, RescaleIntercept=100, SoftcopyVOILUTSequence=Items([window(1000, 801)]))
    values = VALUES * 2.0 + 100
    expected = np.rint((((values - 999.5) / 800 + 0.5).clip(0, 1)) * 255)
    assert np.abs(picture(image(), source).astype(int) - expected).max() <= 1
    # Without a window: from the least to the greatest value after rescaling, here the ramp itself.
    assert np.array_equal(picture(image(), state(RescaleSlope=2, RescaleIntercept=100)), PLAIN)
    table = lookup(2, 800, 16, words(0, 65535))
    shown = picture(image(), state(ModalityLUTSequence=Items([table])))
    assert np.array_equal(shown, np.where(VALUES > 800, 255, 0))


def test_each_image_has_its_own_window() -> None:
    sequence = Items([
        window(500, 1, ReferencedImageSequence=about(2)),
        window(1000, 1, ReferencedImageSequence=about(1, frames=[2])),
        window(800, 1, ReferencedImageSequence=about(1, frames=[1])),
    ])  # fmt: skip
    on = surface([image(1), image(2), state(1, 2, SoftcopyVOILUTSequence=sequence)])
    parts = split(on.get(RENDERED, 'multipart/related; type="image/png"'))
    assert [headers["Content-Type"] for headers, _ in parts] == ["image/png"] * 2
    for (_, body), center in zip(parts, (800, 500), strict=True):
        assert np.array_equal(imagecodecs.png_decode(body), np.where(center - 0.5 < VALUES, 255, 0))
    assert on.get(RENDERED, "image/png").content == parts[0][1], "in one part the first is shown"
    table = item(VOILUTSequence=Items([lookup(2, 900, 8, [0, 255])]))
    shown = picture(image(), state(SoftcopyVOILUTSequence=Items([table])))
    assert np.array_equal(shown, np.where(VALUES > 900, 255, 0))


def test_presentation_tables_and_shapes() -> None:
    assert np.array_equal(picture(image(), state(PresentationLUTShape="INVERSE")), 255 - PLAIN)
    table = lookup(256, 0, 8, [255 - (n // 2) for n in range(256)])
    source = state(PresentationLUTSequence=Items([table]))
    del source.PresentationLUTShape
    expected = 255 - np.rint(VALUES / 4095 * 255).astype(int) // 2
    assert np.abs(picture(image(), source).astype(int) - expected).max() <= 1


def test_pseudo_colour() -> None:
    columns = {"Red": np.arange(256), "Green": 255 - np.arange(256), "Blue": np.full(256, 9)}
    palette: dict[str, Any] = {}
    for colour, table in columns.items():
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = (table * 257).astype("<u2").tobytes()
    source = state(sop_class=PSEUDO_COLOR, SoftcopyVOILUTSequence=Items([window(800, 1601)]), **palette)
    del source.PresentationLUTShape
    index = np.rint(((VALUES - 799.5) / 1600 + 0.5).clip(0, 1) * 255).astype(int)
    expected = np.stack([columns[colour][index] for colour in ("Red", "Green", "Blue")], axis=-1)
    assert np.abs(picture(image(), source).astype(int) - expected).max() <= 1
    bare = surface([image(), state(sop_class=PSEUDO_COLOR)]).get(RENDERED)
    assert (bare.status_code, "palette" in bare.json()["detail"]) == (406, True)


def test_colour_states_turn_and_draw_and_leave_the_colours() -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
    colour = made(
        1, Rows=ROWS, Columns=COLUMNS, SamplesPerPixel=3, BitsAllocated=8, BitsStored=8, HighBit=7,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=rgb.tobytes(),
    )  # fmt: skip
    source = state(sop_class=COLOR, ImageRotation=90, ImageHorizontalFlip="N")
    assert np.array_equal(picture(colour, source), np.rot90(rgb, -1))


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", ["N", "Y"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_images_are_turned_and_then_mirrored(rotation: int, flip: str) -> None:
    expected = np.rot90(PLAIN, -rotation // 90)
    if flip == "Y":
        expected = expected[:, ::-1]
    assert np.array_equal(picture(image(), state(ImageRotation=rotation, ImageHorizontalFlip=flip)), expected)


def test_the_displayed_area() -> None:
    def of(*areas: Dataset, query: str = "", **attributes: Any) -> NDArray[np.uint8]:
        source = state(DisplayedAreaSelectionSequence=Items(areas), **attributes)
        return picture(image(), source, query=query)

    assert np.array_equal(of(area(11, 6, 30, 25)), PLAIN[5:25, 10:30])
    # The corners of what is seen: of a turned image, in the image's own columns and rows.
    assert np.array_equal(of(area(30, 25, 11, 6), ImageRotation=180), PLAIN[5:25, 10:30][::-1, ::-1])
    beyond = of(area(-4, -9, 65, 45))
    assert beyond.shape == (55, 70)
    assert np.array_equal(beyond[10:50, 5:65], PLAIN)
    assert beyond.sum() == PLAIN.sum(), "nothing but black around it"
    assert not of(area(100, 100, 120, 110)).any()
    own = area(11, 6, 30, 25, ReferencedImageSequence=about(1))
    assert np.array_equal(of(area(1, 1, 5, 5, ReferencedImageSequence=about(2)), own), PLAIN[5:25, 10:30])
    magnified = area(1, 1, 60, 40, PresentationPixelMagnificationRatio=2)
    magnified.PresentationSizeMode = "MAGNIFY"
    assert of(magnified).shape == (80, 120)
    assert of(area(1, 1, 60, 40, PresentationPixelAspectRatio=["2", "1"])).shape == (80, 60)
    assert of(area(1, 1, 60, 40, PresentationPixelSpacing=["0.5", "1"])).shape == (40, 120)
    assert of(area(1, 1, 60, 40), query="viewport=30,30").shape == (20, 30)
    assert of(area(1, 1, 60, 40), query="viewport=120,300").shape == (80, 120)
    assert of(area(11, 6, 30, 25), query="viewport=20,20", ImageRotation=90).shape == (20, 20)


def test_shutters_hide_what_is_outside_of_any_shape() -> None:
    row, column = np.mgrid[1 : ROWS + 1, 1 : COLUMNS + 1]
    rectangle = {
        "ShutterLeftVerticalEdge": "5", "ShutterRightVerticalEdge": "50",
        "ShutterUpperHorizontalEdge": "3", "ShutterLowerHorizontalEdge": "30",
    }  # fmt: skip
    circle = {"CenterOfCircularShutter": ["20", "30"], "RadiusOfCircularShutter": "15"}
    polygon = {"VerticesOfThePolygonalShutter": ["10", "10", "10", "40", "35", "40", "35", "10"]}
    within = {
        "RECTANGULAR": (column >= 5) & (column <= 50) & (row >= 3) & (row <= 30),
        "CIRCULAR": np.hypot(row - 20, column - 30) <= 15,
        "POLYGONAL": (row >= 10) & (row <= 35) & (column >= 10) & (column <= 40),
    }
    for shapes in (["RECTANGULAR"], ["CIRCULAR"], ["POLYGONAL"], ["RECTANGULAR", "CIRCULAR", "POLYGONAL"]):
        source = state(ShutterShape=shapes, ShutterPresentationValue=0x8080, **rectangle, **circle, **polygon)
        seen = np.logical_and.reduce([within[shape] for shape in shapes])
        assert np.array_equal(picture(image(), source), np.where(seen, PLAIN, 128)), shapes
    turned = picture(image(), state(ShutterShape="CIRCULAR", ImageRotation=90, **circle))
    assert np.array_equal(turned, np.rot90(np.where(within["CIRCULAR"], PLAIN, 0), -1)), "black unless told"


# --- what is drawn ---------------------------------------------------------------------------------------------------


def drawn(*graphics: Dataset, layer: str = "", **attributes: Any) -> Items:
    """A Graphic Annotation Sequence of graphics, or of texts."""
    texts = [one for one in graphics if "UnformattedTextValue" in one]
    shapes = [one for one in graphics if "GraphicType" in one]
    annotation = item(GraphicLayer=layer or "ONE", **attributes)
    if texts:
        annotation.TextObjectSequence = Items(texts)
    if shapes:
        annotation.GraphicObjectSequence = Items(shapes)
    return annotation


def graphic(kind: str, *spots: float, filled: str = "N", units: str = "PIXEL") -> Dataset:
    return item(
        GraphicAnnotationUnits=units, GraphicDimensions=2, NumberOfGraphicPoints=min(len(spots) // 2, 65535),
        GraphicData=list(spots), GraphicType=kind, GraphicFilled=filled,
    )  # fmt: skip


def layer(name: str, order: int, grey: int | None = None, lab: Sequence[int] = ()) -> Dataset:
    made = item(GraphicLayer=name, GraphicLayerOrder=order)
    if grey is not None:
        made.GraphicLayerRecommendedDisplayGrayscaleValue = grey
    if lab:
        made.GraphicLayerRecommendedDisplayCIELabValue = list(lab)
    return made


def annotated(*annotations: Dataset, **attributes: Any) -> Dataset:
    layers = attributes.pop("layers", [layer("ONE", 1)])
    return state(GraphicAnnotationSequence=Items(annotations), GraphicLayerSequence=Items(layers), **attributes)


def changed(source: Dataset, **attributes: Any) -> NDArray[np.bool_]:
    return np.asarray(picture(image(), source, **attributes) != PLAIN)


def test_lines_go_through_the_pixels_that_they_name() -> None:
    """The top left corner of the top left pixel is 0, 0 (PS3.3 C.10.5.1.2)."""
    source = annotated(drawn(graphic("POLYLINE", 10.5, 5.5, 20.5, 5.5, 20.5, 30.5)))
    shown = picture(image(), source)
    expected = PLAIN.copy()
    expected[5, 10:21] = 255
    expected[5:31, 20] = 255
    assert np.array_equal(shown, expected)
    # On a turned and mirrored image they are where the image is.
    turned = annotated(
        drawn(graphic("POLYLINE", 10.5, 5.5, 20.5, 5.5, 20.5, 30.5)), ImageRotation=90, ImageHorizontalFlip="Y"
    )
    assert np.array_equal(picture(image(), turned), np.rot90(expected, -1)[:, ::-1])
    part = annotated(
        drawn(graphic("POLYLINE", -500, 5.5, 1e9, 5.5)),
        DisplayedAreaSelectionSequence=Items([area(11, 1, 30, 20)]),
    )
    expected = PLAIN[:20, 10:30].copy()
    expected[5] = 255
    assert np.array_equal(picture(image(), part), expected)


def test_shapes() -> None:
    row, column = np.mgrid[0:ROWS, 0:COLUMNS] + 0.5
    away = np.hypot(column - 30, row - 20)
    circle = changed(annotated(drawn(graphic("CIRCLE", 30, 20, 40, 20))))
    assert (np.abs(away[circle] - 10) < 1.5).all()
    assert circle.sum() > 50
    disc = changed(annotated(drawn(graphic("CIRCLE", 30, 20, 40, 20, filled="Y"))))
    assert disc[away < 9].all()
    assert not disc[away > 11.5].any()
    inside = ((column - 30) / 20) ** 2 + ((row - 20) / 8) ** 2
    ellipse = changed(annotated(drawn(graphic("ELLIPSE", 10, 20, 50, 20, 30, 12, 30, 28, filled="Y"))))
    assert ellipse[inside < 0.8].all()
    assert not ellipse[inside > 1.3].any()
    point = changed(annotated(drawn(graphic("POINT", 30.5, 20.5))))
    assert point[20, 30]
    assert away[point].max() < 4
    curve = changed(annotated(drawn(graphic("INTERPOLATED", 10, 30, 30, 10, 50, 30))))
    assert curve[29:32, 9:12].any()
    assert curve[9:12, 29:32].any()
    assert curve[29:32, 48:52].any()
    square = [20, 10, 40, 10, 40, 30, 20, 30, 20, 10]
    filled = changed(annotated(drawn(graphic("POLYLINE", *square, filled="Y"))))
    assert filled[11:29, 21:39].all()
    assert not changed(annotated(drawn(graphic("POLYLINE", *square[:8], filled="Y"))))[15:25, 25:35].any(), "open"
    middle = changed(annotated(drawn(graphic("POLYLINE", 0, 0.5, 1, 0.5, units="DISPLAY"))))
    assert np.flatnonzero(middle.all(axis=1)).tolist() == [20]


def test_layers_are_drawn_in_their_order_and_colours() -> None:
    line = graphic("POLYLINE", 10.5, 5.5, 20.5, 5.5)
    over = [drawn(line, layer="B"), drawn(line, layer="A")]
    for orders, expected in (((1, 2), 100), ((2, 1), 200)):
        layers = [layer("B", orders[0], 200 * 257), layer("A", orders[1], 100 * 257)]
        assert picture(image(), annotated(*over, layers=layers))[5, 15] == expected
    red = [layer("ONE", 1, 65535, (34885, 53485, 50171))]  # L* 53.2, a* 80.1, b* 67.2
    shown = picture(image(), annotated(drawn(line), layers=red))
    assert shown.shape == (ROWS, COLUMNS, 3)
    assert np.abs(shown[5, 15].astype(int) - (255, 0, 0)).max() < 30
    assert np.array_equal(shown[20:, :, 1], PLAIN[20:])


def test_annotations_are_for_the_images_that_they_name() -> None:
    line = graphic("POLYLINE", 0, 5.5, 60, 5.5)
    named = drawn(line, ReferencedImageSequence=about(2))
    assert not changed(annotated(named)).any()
    assert changed(annotated(drawn(line, ReferencedImageSequence=about(1)))).any()
    frames = np.stack([VALUES, VALUES, VALUES])
    second = drawn(line, ReferencedImageSequence=about(1, frames=[2]))
    for frame, is_drawn in ((1, False), (2, True)):
        shown = picture(image(1, frames), annotated(second, frames=[frame]))
        assert (shown != PLAIN).any() == is_drawn


def words_of(text: str, **attributes: Any) -> Dataset:
    return item(UnformattedTextValue=text, **attributes)


def box(left: float, top: float, right: float, bottom: float, align: str = "LEFT") -> dict[str, Any]:
    return {
        "BoundingBoxAnnotationUnits": "PIXEL", "BoundingBoxTopLeftHandCorner": [left, top],
        "BoundingBoxBottomRightHandCorner": [right, bottom], "BoundingBoxTextHorizontalJustification": align,
    }  # fmt: skip


def test_texts() -> None:
    query = "viewport=600,400"
    plain = picture(image(), state(), query=query)

    def written(*texts: Dataset) -> NDArray[np.intp]:
        """Columns and rows that a text changes."""
        marked = picture(image(), annotated(drawn(*texts)), query=query) != plain
        return np.argwhere(marked)[:, ::-1]

    left = written(words_of("Nodule", **box(10, 10, 50, 15)))
    assert left.min(axis=0).min() > 95
    assert left[:, 0].max() < 200
    right = written(words_of("Nodule", **box(10, 10, 50, 15, "RIGHT")))
    assert 495 < right[:, 0].max() < 510
    assert right[:, 0].min() > 400
    beside = {"AnchorPointAnnotationUnits": "PIXEL", "AnchorPoint": [30, 30]}
    assert written(words_of("Nodule", **beside)).min(axis=0).min() > 295
    pointed = written(words_of("N", **box(10, 10, 20, 15), **beside, AnchorPointVisibility="Y"))
    assert pointed.max(axis=0).tolist() >= [299, 299]
    assert len(written(words_of("one\r\ntwo", **box(10, 10, 50, 15)))) > len(
        written(words_of("one", **box(10, 10, 50, 15)))
    )
    # What would reach out of the picture is moved into it; what no font has is marked.
    assert len(written(words_of("\u5c71 edge", **box(59, 39, 60, 40)))) > 100
    assert not written(words_of("", **box(10, 10, 50, 15))).size
    assert not written(words_of("nowhere")).size
    thumbnails = [
        picture(image(), source, path=THUMBNAIL) for source in (state(), annotated(drawn(words_of("N", **beside))))
    ]
    assert np.array_equal(*thumbnails), "a thumbnail has no text (THUMB-01)"


def overlay(bits: NDArray[np.bool_], group: int = 0x6000, origin: tuple[int, int] = (1, 1)) -> Dataset:
    """The elements of an overlay, to be added to a data set."""
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    elements = Dataset()
    for element, vr, value in (
        *((0x10, "US", bits.shape[0]), (0x11, "US", bits.shape[1]), (0x40, "CS", "G"), (0x50, "SS", list(origin))),
        *((0x100, "US", 1), (0x102, "US", 0), (0x3000, "OW", packed + b"\0" * (len(packed) % 2))),
    ):
        elements.add_new((group, element), vr, value)
    return elements


def test_overlays_are_shown_where_a_layer_activates_them() -> None:
    bits = np.random.default_rng(6).random((10, 12)) > 0.5
    own, bare = state(GraphicLayerSequence=Items([layer("ONE", 1, 0)])), state()
    own.update(overlay(bits, 0x6002, (4, 6)))
    expected = PLAIN.copy()
    expected[3:13, 5:17][bits] = 0
    assert np.array_equal(picture(image(), own), PLAIN), "not activated"
    own.add_new((0x6002, 0x1001), "CS", "ONE")
    assert np.array_equal(picture(image(), own), expected)
    of_image = image()
    of_image.update(overlay(bits, 0x6000, (-1, 59)))
    bare.add_new((0x6000, 0x1001), "CS", "UNKNOWN")
    expected = PLAIN.copy()
    expected[:8, 58:][bits[2:, :2]] = 255
    assert np.array_equal(picture(of_image, bare), expected)
    shutter = state(ShutterShape="BITMAP", ShutterOverlayGroup=0x6004, ShutterPresentationValue=65535)
    shutter.update(overlay(bits, 0x6004, (4, 6)))
    expected = PLAIN.copy()
    expected[3:13, 5:17][bits] = 255
    assert np.array_equal(picture(image(), shutter), expected)
    small = picture(image(), own, query="viewport=6,4")
    assert small.shape == (4, 6)


def test_overlays_that_are_bulk_data_are_fetched() -> None:
    bits = np.zeros((3000, 3000), bool)
    bits[5, 10:20] = True
    expected = PLAIN.copy()
    expected[5, 10:20] = 255
    for owner in ("image", "state"):
        shown, source = image(), state()
        (shown if owner == "image" else source).update(overlay(bits))
        source.add_new((0x6000, 0x1001), "CS", "ONE")
        assert np.array_equal(picture(shown, source), expected), owner


# --- which images, and what is refused -------------------------------------------------------------------------------


def test_a_state_is_shown_where_it_is_all_that_was_asked_for() -> None:
    on = surface([image(1), image(2), state(2, 1, SoftcopyVOILUTSequence=Items([window(800, 1)]))])
    answer = on.get(RENDERED, "image/png")
    assert answer.headers["content-location"].endswith(RENDERED)
    assert on.get(f"{SERIES}/rendered", "image/png").content == answer.content
    assert on.get(RENDERED, If_None_Match=answer.headers["etag"]).status_code == 200, "of another type"
    assert on.get(RENDERED, "image/png", If_None_Match=answer.headers["etag"]).status_code == 304
    small = on.get(f"{RENDERED.replace('rendered', 'thumbnail')}?viewport=30,30", "image/png")
    assert imagecodecs.png_decode(small.content).shape == (20, 30)
    assert on.get(f"{RENDERED.replace('rendered', 'frames/1/rendered')}").status_code == 404
    # Beside images it is not shown, and forbids nothing.
    study = on.get("/dicomweb/studies/1.2.3/rendered?window=800,1,linear", "image/png")
    assert study.headers["content-location"].endswith("/series/1.2.3.4/instances/1.2.3.4.2/rendered")
    assert len(split(on.get("/dicomweb/studies/1.2.3/rendered", 'multipart/related; type="image/png"'))) == 2
    for query in ("window=1,2,linear", "viewport=10,10,,,5,5"):
        assert on.get(f"{RENDERED}?{query}").status_code == 400
    uri = "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.5&objectUID=1.2.3.5.1"
    assert on.get(f"/dicomweb?{uri}&contentType=image/png").content == answer.content
    assert on.get(f"/dicomweb?{uri}").headers["content-type"].startswith("application/dicom")


def test_pictures_of_states_change_with_the_state_and_with_the_image() -> None:
    tags = {
        surface(data_sets).get(RENDERED, "image/png").headers["etag"]
        for data_sets in (
            [image(), state()],
            [image(values=VALUES + 1), state()],
            [image(), state(ImageRotation=90)],
        )
    }
    assert len(tags) == 3
    on = surface([image(values=np.tile(VALUES, (8, 8))), state()])
    plain, named = (on.get(RENDERED + query, "image/png") for query in ("", "?annotation=patient,technique"))
    assert plain.headers["etag"] != named.headers["etag"]
    assert plain.content != named.content
    assert on.get(RENDERED, If_None_Match="*").status_code == 304


def test_images_that_are_not_there_are_named() -> None:
    for data_sets, named in (
        ([image(2), state(1)], "1.2.3.4.1"),
        ([image(1), state(1, frames=[2])], "1.2.3.4.1"),
        ([document(1), state(1)], "1.2.3.4.1"),
        ([image(1, StudyInstanceUID="1.2.9"), state(1)], "1.2.3.4.1"),
        ([image(1), state(ReferencedSeriesSequence=Items([]))], "no image"),
    ):
        on = surface(data_sets)
        for path in (RENDERED, THUMBNAIL):
            answer = on.get(path, "image/png")
            assert (answer.status_code, named in answer.json()["detail"]) == (404, True), answer.text
    # Beside the primary image set: whoever wants it has to ask for it by that.
    on = surface([state(1)])
    on.backend.add(image(1), "b" * 32)
    assert on.get(RENDERED).status_code == 404
    # The first is shown, though another is not there; all are not.
    on = surface([image(1), state(1, 2)])
    assert on.get(RENDERED).status_code == 200
    assert on.get(RENDERED, 'multipart/related; type="image/png"').status_code == 404


@pytest.mark.parametrize("number", [4, 5, 6, 8, 12])
def test_kinds_of_states_that_are_not_shown_are_refused(number: int) -> None:
    answer = surface([image(), state(sop_class=f"1.2.840.10008.5.1.4.1.1.11.{number}")]).get(RENDERED)
    assert (answer.status_code, "Grayscale" in answer.json()["detail"]) == (406, True)


def test_what_is_not_drawn_is_refused_rather_than_left_out() -> None:
    masked = state(MaskSubtractionSequence=Items([item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1])]))
    matrix = annotated(drawn(graphic("POLYLINE", 1, 1, 2, 2, units="MATRIX")))
    points = annotated(drawn(graphic("POLYLINE", *range(200_002))))
    marks = annotated(drawn(*[graphic("POINT", 1, 1)] * 5_001))
    texts = annotated(drawn(*[words_of("x", **box(1, 1, 2, 2))] * 501))
    vast = state(DisplayedAreaSelectionSequence=Items([area(-(1 << 31), -(1 << 31), (1 << 31) - 1, (1 << 31) - 1)]))
    for source in (masked, matrix, points, marks, texts, vast):
        answer = surface([image(), source]).get(RENDERED)
        assert answer.status_code == 406, answer.text
        assert answer.json()["detail"]
    costly = annotated(drawn(graphic("POLYLINE", *([0, 0, 60, 40] * 6_000), 0, 0, filled="Y")))
    answer = surface([image(), costly]).get(f"{RENDERED}?viewport=6000,6000")
    assert (answer.status_code, "viewport" in answer.json()["detail"]) == (406, True)
    # With a viewport it is a picture, of next to nothing.
    assert picture(image(), vast, query="viewport=50,50").shape == (50, 50)


def test_hostile_states_cost_bounded_time() -> None:
    far = np.random.default_rng(7).uniform(-1e30, 1e30, 2 * 20_000).tolist()
    near = np.random.default_rng(8).uniform(0, 60, 2 * 20_000).tolist()
    graphics = [
        graphic("POLYLINE", *far), graphic("INTERPOLATED", *near[:8_000]), graphic("CIRCLE", 0, 0, 1e38, 1e38),
        graphic("POLYLINE", *near[:10_000], *near[:2], filled="Y"),
        graphic("POLYLINE", *far[:10_000], *far[:2], filled="Y"),
        graphic("ELLIPSE", *far[:8], filled="Y"), graphic("POINT", 1e38, -1e38),
    ]  # fmt: skip
    magnified = area(30, 20, 30, 20)
    begun = time.monotonic()
    source = annotated(drawn(*graphics), DisplayedAreaSelectionSequence=Items([magnified]))
    assert picture(image(), source, query="viewport=2000,2000").shape == (2000, 2000)
    assert time.monotonic() - begun < 30


def test_attributes_that_make_no_sense_cost_no_picture() -> None:
    odd = annotated(
        drawn(graphic("POLYLINE", 1, 1), graphic("ELLIPSE", 1, 1, 2, 2), graphic("SPIRAL", 1, 1, 2, 2)),
        item(GraphicLayer="NONE"),
        ImageRotation=0,
        ShutterShape=["CIRCULAR", "STAR"],
        DisplayedAreaSelectionSequence=Items([item(DisplayedAreaTopLeftHandCorner=[1, 1]), Dataset()]),
        SoftcopyVOILUTSequence=Items([Dataset()]),
    )
    odd.add_new((0x6000, 0x1001), "CS", "ONE")
    odd.add_new((0x6002, 0x1001), "CS", "ONE")
    odd.update(overlay(np.ones((3, 3), bool), 0x6002))
    odd[0x6002, 0x0010].value = 60_000
    assert np.array_equal(picture(image(), odd), PLAIN)


@pytest.mark.needs("corpus")
def test_the_state_of_the_corpus_activates_the_overlays_of_its_image() -> None:
    assert CORPUS is not None
    source, shown = (pydicom.dcmread(CORPUS / f"pr/{name}.dcm") for name in ("prOverlay", "overlay"))
    path = f"/dicomweb/studies/{source.StudyInstanceUID}/series/{source.SeriesInstanceUID}"
    path += f"/instances/{source.SOPInstanceUID}/rendered"
    expected = shades(np.frombuffer(shown.PixelData, "<u2").reshape(512, 512) & 0xFFF)
    for data_set, group in ((shown, 0x6004), (shown, 0x6006), (source, 0x6008), (source, 0x600A)):
        bits = np.unpackbits(np.frombuffer(data_set[group, 0x3000].value, np.uint8), bitorder="little")
        expected[bits.reshape(512, 512).astype(bool)] = 255
    assert np.array_equal(picture(shown, source, path=path), expected)
