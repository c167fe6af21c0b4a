"Reading pictures that people really have, and finding the face in them."
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile
from skimage import data

from mellm import facs
from mellm.faces import (FaceNotFound, ImageError, crop_face, detect_faces, draw_regions, eye_centers, face_box, inter_ocular, landmarks,
                         read_image, region_masks, regions, transform_points)


@pytest.fixture(scope="module")
def portrait(): return data.astronaut()[:260, 90:330].copy()


@pytest.fixture(scope="module")
def lm(portrait): return landmarks(portrait)


def encoded(image, ending, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, ending, **options)
    return buffer.getvalue()


# ---- files that cannot be used: each a sentence with the path
@pytest.fixture
def bad_files(tmp_path, portrait):
    jpeg, png = encoded(portrait, "jpeg", quality=90), encoded(portrait, "png")
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    (tmp_path / "folder.png").mkdir()
    contents = {"empty.png": b"", "text.png": b"This is no picture.", "half.jpg": jpeg[:len(jpeg) // 2], "head.jpg": jpeg[:200], "half.png": png[:len(png) // 2],
                "head.png": png[:40], "bit.png": bytes(broken), "zeros.png": bytes(5000), "no-end.png": png[:-12]}
    for name, content in contents.items(): (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name,says", [("missing.png", "does not exist"), ("folder.png", "is a folder"), ("empty.png", "is empty"), ("text.png", "is not an image"),
    ("zeros.png", "is not an image"), ("half.jpg", "cut off or damaged"), ("head.jpg", ""), ("half.png", "cut off or damaged"), ("head.png", ""),
    ("bit.png", "cut off or damaged"), ("no-end.png", "cut off or damaged")])
def test_bad_files_are_errors_in_sentences(bad_files, name, says):
    with pytest.raises(ImageError) as e: read_image(bad_files / name)
    assert name in str(e.value) and says in str(e.value) and str(e.value).endswith(".")


def test_truncated_files_are_refused_even_when_another_library_allows_them(bad_files, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError): read_image(bad_files / "half.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True # and the other library's setting is left as it was


def test_odd_paths_are_errors_too():
    with pytest.raises(ImageError): read_image("x" * 5000)
    with pytest.raises(ImageError): read_image("a.png/b.png")


# ---- files that are fine
def test_rgb_is_read_as_rgb(tmp_path, portrait):
    (tmp_path / "a.png").write_bytes(encoded(portrait, "png"))
    assert np.array_equal(read_image(tmp_path / "a.png"), portrait) and np.array_equal(read_image(str(tmp_path / "a.png")), portrait)


def test_grey_16_bit_palette_and_alpha(tmp_path, portrait):
    grey = cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)
    alpha = np.full(grey.shape, 255, np.uint8); alpha[:50] = 0
    Image.fromarray(grey).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep.tif"), grey.astype(np.uint16) * 257)
    Image.fromarray(portrait).quantize(64).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([portrait, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    for name in ("grey.png", "deep.png", "deep.tif"): assert (read_image(tmp_path / name) == grey[..., None]).all()
    assert np.abs(read_image(tmp_path / "palette.png").astype(int) - portrait).mean() < 12
    rgba = read_image(tmp_path / "rgba.png")
    assert (rgba[:50] == 255).all() and np.array_equal(rgba[50:], portrait[50:])
    assert (read_image(tmp_path / "la.png")[:50] == 255).all()
    for name in ("grey.png", "deep.png", "deep.tif", "palette.png", "rgba.png", "la.png"):
        image = read_image(tmp_path / name)
        assert image.shape == portrait.shape and image.dtype == np.uint8 and image.flags.c_contiguous


def test_camera_orientation_is_followed(tmp_path, portrait):
    exif = Image.Exif(); exif[0x0112] = 6 # the camera was turned: show it rotated clockwise
    Image.fromarray(np.rot90(portrait)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), portrait)


def test_floating_point_pictures_are_refused(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match="floating-point"): read_image(tmp_path / "f.tif")


# ---- faces
def test_landmarks_are_68_points_on_the_face(portrait, lm):
    assert lm.shape == (68, 2) and lm.dtype.kind == "f"
    (rx, ry), (lx, ly) = eye_centers(lm)
    assert rx < lm[30, 0] < lx and lm[30, 1] > ry and lm[57, 1] > lm[30, 1] and lm[8, 1] > lm[57, 1]
    grey = landmarks(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY))
    assert np.abs(grey - lm).max() < .1 * inter_ocular(lm)


def test_no_face_is_an_error_that_names_the_picture():
    with pytest.raises(FaceNotFound, match="onset.png.*300×200"): landmarks(np.full((200, 300, 3), 128, np.uint8), "onset.png")
    assert issubclass(FaceNotFound, ImageError) and issubclass(ImageError, ValueError)


def test_of_two_faces_the_largest_is_taken_with_a_warning(portrait):
    large = cv2.resize(portrait, None, fx=1.5, fy=1.5)[:260]
    with pytest.warns(UserWarning, match="2 faces were found in the picture; the largest"): found = landmarks(np.hstack([portrait, large]))
    assert found[:, 0].min() > portrait.shape[1]


def test_one_face_gives_no_warning(recwarn, portrait):
    landmarks(data.astronaut()), landmarks(portrait)
    assert not [w for w in recwarn if w.category is UserWarning]


def test_large_pictures_are_searched(portrait):
    large = cv2.resize(data.astronaut(), None, fx=3, fy=3)
    assert np.abs(landmarks(large) / 3 - landmarks(data.astronaut())).max() < 6 and len(detect_faces(large)) == 1


@pytest.mark.parametrize("image", [np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8), np.zeros(9, np.uint8), None])
def test_arrays_that_are_no_pictures(image):
    with pytest.raises(ImageError, match="must be uint8 of shape"): landmarks(image)


# ---- regions and crops
def test_regions_are_those_of_facs_and_lie_where_their_names_say(portrait, lm):
    polygons, masks = regions(lm), region_masks(lm, portrait.shape)
    assert tuple(polygons) == tuple(masks) == tuple(facs.REGIONS)
    assert all(m.shape == portrait.shape[:2] and m.dtype == bool and m.any() for m in masks.values())
    center = {k: p.mean(0) for k, p in polygons.items()}
    for key in center:
        if key.startswith("left_"): assert center[key][0] > center[key.replace("left", "right")][0] # the subject's left is on the right of the picture
    for side in ("left", "right"):
        column = [center[f"{side}_{k}"][1] for k in ("inner_brow", "lower_eyelid", "cheek", "nostril", "mouth_corner")] + [center["chin"][1]]
        assert column == sorted(column)
    assert center["upper_lip"][1] < center["lower_lip"][1] < center["chin"][1]


def test_regions_turn_and_scale_with_the_face(lm):
    M = np.c_[1.7 * np.array([[np.cos(.3), -np.sin(.3)], [np.sin(.3), np.cos(.3)]]), [5, -9]]
    for key, polygon in regions(transform_points(lm, M)).items(): assert np.allclose(polygon, transform_points(regions(lm)[key], M))


def test_a_region_outside_of_the_picture_is_empty(lm):
    masks = region_masks(lm, (int(lm[30, 1]), 240))
    assert not masks["chin"].any() and masks["left_inner_brow"].any()


def test_drawing_leaves_the_picture_alone(portrait, lm):
    before = portrait.copy()
    drawn = draw_regions(portrait, lm)
    assert np.array_equal(before, portrait) and (drawn != portrait).any() and drawn.shape == portrait.shape
    assert draw_regions(portrait[..., 0], lm).shape == portrait.shape


@pytest.mark.parametrize("size", [96, 224, 448])
def test_crop_puts_the_face_in_its_place(portrait, lm, size):
    crop, M = crop_face(portrait, lm, size)
    right, left = eye_centers(transform_points(lm, M))
    mouth = transform_points(lm, M)[48:68].mean(0)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert np.isclose(left[0] - right[0], .32 * size) and np.isclose(left[1], right[1])
    assert np.allclose(((left + right) / 2 + mouth) / 2, [.5 * size, .52 * size])


def test_landmarks_of_the_crop_are_the_cropped_landmarks(portrait, lm):
    crop, M = crop_face(portrait, lm)
    assert np.abs(landmarks(crop) - transform_points(lm, M)).mean() < .06 * .32 * 224


def test_box_and_bad_landmarks(portrait, lm):
    x, y, w, h = face_box(lm, portrait.shape)
    assert 0 <= x and x + w < portrait.shape[1] and h > 0
    with pytest.raises(ValueError, match=r"\(68, 2\), not \(5, 2\)"): regions(lm[:5])
    with pytest.raises(ValueError, match="NaN"): inter_ocular(lm * np.nan)
    with pytest.raises(ValueError, match="one place"): regions(np.zeros((68, 2)))
