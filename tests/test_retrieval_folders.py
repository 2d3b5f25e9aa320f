"""Folders that examples/retrieval refuses: what was looked for, what is there, the way out."""

import pytest

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from retrieval_program import spoil, tiny_image  # noqa: E402

from examples.retrieval.layouts import LAYOUTS  # noqa: E402
from examples.retrieval.refusal import Refusal  # noqa: E402


def half_unpacked(root):
    spoil(root, "cub")
    (root / "CUB_200_2011" / "image_class_labels.txt").unlink()


def image_missing(root):
    spoil(root, "cub")
    for path in sorted((root / "CUB_200_2011" / "images").rglob("*.jpg"))[:5]:
        path.unlink()


def no_class(root):
    spoil(root, "cub")
    path = root / "CUB_200_2011" / "image_class_labels.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def cut_off(root):
    spoil(root, "sop")
    path = root / "Stanford_Online_Products" / "Ebay_test.txt"
    text = path.read_text().rstrip()
    path.write_text(text[: text.rindex("chair_final")])


def other_status(root):
    spoil(root, "inshop")
    path = root / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" gallery", " galery"))


def no_images(root):
    spoil(root, "inshop")
    (root / "Img" / "img").rename(root / "Img" / "img_highres")


def other_annotations(root):
    import numpy as np
    from scipy.io import savemat

    spoil(root, "cars")
    savemat(root / "cars_annos.mat", {"other": np.zeros(3)})


def no_annotations(root):
    spoil(root, "cars")
    (root / "cars_annos.mat").unlink()


def class_in_both(root):
    spoil(root, "sop")
    folder = root / "Stanford_Online_Products"
    with (folder / "Ebay_test.txt").open("a") as file:
        file.write((folder / "Ebay_train.txt").read_text().splitlines()[1] + "\n")


def whole_lines_missing(root):
    spoil(root, "inshop")
    path = root / "Eval" / "list_eval_partition.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")


def no_header(root):
    spoil(root, "sop")
    path = root / "Stanford_Online_Products" / "Ebay_train.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")


def no_inshop_header(root):
    spoil(root, "inshop")
    path = root / "Eval" / "list_eval_partition.txt"
    count, _, *rows = path.read_text().splitlines()
    path.write_text("\n".join([count, *rows]) + "\n")


def image_twice(root):
    spoil(root, "cub")
    path = root / "CUB_200_2011" / "images.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:-1], f"24 {rows[0].split()[1]}"]) + "\n")


def a_folder_of_that_name(root):
    spoil(root, "cub")
    path = root / "CUB_200_2011" / "images.txt"
    path.unlink()
    path.mkdir()


def other_release(root):
    for folder in ("cars_train", "cars_test"):
        tiny_image(root / folder / "00001.jpg")


def damaged_annotations(root):
    spoil(root, "cars")
    whole = (root / "cars_annos.mat").read_bytes()
    (root / "cars_annos.mat").write_bytes(whole[: len(whole) // 2])


def no_query(root):
    spoil(root, "inshop")
    path = root / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" query", " gallery"))


def trains_in_the_gallery(root):
    spoil(root, "inshop")
    path = root / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" train", " gallery", 1))


SPOILED = [
    ("inshop", whole_lines_missing, r"list_eval_partition.txt: expected 24 images, as its first "
     r"line says, got 21; it was cut off"),
    ("inshop", no_inshop_header, r"expected above its rows 'the number of images', then "
     r"'image_name item_id evaluation_status', got '24', then 'img/"),
    ("inshop", no_query, r"evaluation_status: expected images .*, got none of query; fetch"),
    ("inshop", trains_in_the_gallery, r"others that are retrieved, got 1 in both"),
    ("sop", no_header, r"Ebay_train.txt: expected above its rows 'image_id class_id "
     r"super_class_id path', got '1 1 1 chair_final"),
    ("cub", image_twice, r"images.txt: expected each image once, got 1 of them more often: .*_1_0"),
    ("cub", a_folder_of_that_name, r"images.txt: expected a text file, got .*irectory"),
    ("cars", other_release, r"got cars_test and cars_train, which are halves of every class; "
     r"fetch car_ims.tgz and cars_annos.mat instead"),
    ("cars", damaged_annotations, r"cars_annos.mat: expected a struct array 'annotations'"),
    ("cub", half_unpacked, r"--root: expected images.txt, image_class_labels.txt, images of "
     r"CUB-200-2011 in .*CUB_200_2011, got no image_class_labels.txt, only images, images.txt; "
     r"unpack CUB_200_2011.tgz there"),
    ("cub", image_missing, r"images.txt: expected its 24 images to be there, got no file for 5 of "
     r"them: .*_1_0.jpg, .* and 2 more; unpack the images again"),
    ("cub", no_class, r"expected a class for each image of images.txt, got none for .*_6_3.jpg"),
    ("sop", cut_off, r"Ebay_test.txt: expected 4 columns \(image_id class_id super_class_id path"
     r"\), got '24 6 1' in row 12"),
    ("sop", class_in_both, r"got 1 in both: 1"),
    ("inshop", other_status, r"evaluation_status: expected train, query or gallery, got 'galery'"),
    ("inshop", no_images, r"expected img \(or Img/img\) of In-Shop .*, got no img"),
    ("cars", other_annotations, r"cars_annos.mat: expected a struct array 'annotations'"),
    ("cars", no_annotations, r"expected cars_annos.mat, car_ims \(or a folder a class\) of Cars"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "how", "message"), SPOILED, ids=lambda p: getattr(p, "__name__", "")
)
def test_a_spoiled_folder_says_what_is_missing(tmp_path, name, how, message):
    if name == "cars":
        pytest.importorskip("scipy")
    how(tmp_path)
    with pytest.raises(Refusal, match=message):
        LAYOUTS[name](tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_folder_and_an_empty_one(tmp_path, name):
    with pytest.raises(Refusal, match="--root: expected the folder of .*, which is none"):
        LAYOUTS[name](tmp_path / "nowhere")
    with pytest.raises(Refusal, match="--root: expected .*, only nothing; unpack"):
        LAYOUTS[name](tmp_path)
