"""The folders of the four benchmarks as they are released, and the paper's protocol for each.

Classes are numbered in their order; the first half of them trains, the others are retrieved. SOP
and In-Shop name their halves themselves; In-Shop its queries and its gallery, too.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from examples.retrieval.images import Files, Images
from examples.retrieval.refusal import Refusal, some

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Benchmark(NamedTuple):
    """train; query, and gallery, or None where the queries are retrieved by each other.

    ks: the K of Recall@K that the literature reports. flip: whether an image and its mirror image
    show the same.
    """

    name: str
    train: Images
    query: Images
    gallery: Images | None
    ks: tuple[int, ...]
    channels: int = 3
    flip: bool = True

    @property
    def parts(self) -> dict[str, Images]:
        """train, query, and gallery if there is one."""
        found = {"train": self.train, "query": self.query}
        return found if self.gallery is None else {**found, "gallery": self.gallery}


def cub(root: Path) -> Benchmark:
    """images.txt: number and path below images/; image_class_labels.txt: number and class."""
    wanted = ("images.txt", "image_class_labels.txt", "images")
    folder = _folder("CUB-200-2011", root, ("CUB_200_2011",), wanted, "CUB_200_2011.tgz")
    paths = _columns(folder / "images.txt", ("number", "path"))
    classes = _columns(folder / "image_class_labels.txt", ("number", "class"))
    class_of = {row[0]: _whole(row[1], folder / "image_class_labels.txt") for row in classes}
    without = [path for number, path in paths if number not in class_of]
    if without:
        raise Refusal(
            f"{folder / 'image_class_labels.txt'}: expected a class for each image of images.txt, "
            f"got none for {some(without)}; unpack it again"
        )
    files = [(folder / "images" / path, class_of[number]) for number, path in paths]
    return _halves("cub", folder, folder / "images.txt", files, (1, 2, 4, 8))


def cars(root: Path) -> Benchmark:
    """cars_annos.mat with car_ims/, or a folder for each class, in the order of `_by_number`."""
    name = "Cars196"
    for folder in (root, root / "cars196", root / "cars"):
        if (folder / "cars_annos.mat").is_file():
            return _cars_by_annotations(folder)
    if (root / "car_ims").is_dir() or not _class_folders(root):
        wanted = ("cars_annos.mat", "car_ims")
        _folder(name, root, (), wanted, "car_ims.tgz beside cars_annos.mat", "a folder a class")
    folders = _class_folders(root)
    parts = [folder.name for folder in folders if folder.name in ("cars_train", "cars_test")]
    if parts:
        raise Refusal(
            f"--root: expected cars_annos.mat and car_ims, or a folder a class, of {name} in "
            f"{root}, got {' and '.join(parts)}, which are halves of every class; fetch "
            "car_ims.tgz and cars_annos.mat instead"
        )
    files = [
        (path, number) for number, folder in enumerate(folders, 1) for path in _images_in(folder)
    ]
    return _halves("cars", root, root, files, (1, 2, 4, 8))


def _cars_by_annotations(folder: Path) -> Benchmark:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise Refusal(
            f"{folder / 'cars_annos.mat'}: expected scipy to read it, got none: pip install scipy"
        ) from error
    path = folder / "cars_annos.mat"
    wanted = "expected a struct array 'annotations' with 'relative_im_path' and 'class'"
    try:
        annotations = loadmat(path, squeeze_me=True)["annotations"]
        images = [str(image) for image in annotations["relative_im_path"].reshape(-1)]
        classes = [int(number) for number in annotations["class"].reshape(-1)]
    except Exception as error:  # a damaged file fails in scipy in a dozen ways
        raise Refusal(f"{path}: {wanted}, got {error}; fetch it again") from error
    files = [(folder / image, number) for image, number in zip(images, classes, strict=True)]
    return _halves("cars", folder, path, files, (1, 2, 4, 8))


def sop(root: Path) -> Benchmark:
    """Ebay_train.txt and Ebay_test.txt: image_id class_id super_class_id path."""
    wanted = ("Ebay_train.txt", "Ebay_test.txt")
    name = "Stanford Online Products"
    folder = _folder(
        name, root, ("Stanford_Online_Products",), wanted, "Stanford_Online_Products.zip"
    )
    columns = ("image_id", "class_id", "super_class_id", "path")
    parts = []
    for file in wanted:
        rows = _columns(folder / file, columns, header=(" ".join(columns),))
        files = [(folder / row[3], _whole(row[1], folder / file)) for row in rows]
        parts.append(_there(folder, folder / file, files))
    train, test = parts
    _no_class_in_both(folder, train, test)
    return Benchmark("sop", train, test, None, (1, 10, 100, 1000))


def inshop(root: Path) -> Benchmark:
    """Eval/list_eval_partition.txt: image_name item_id evaluation_status; images below Img/."""
    name, archive = "In-Shop Clothes Retrieval", "list_eval_partition.txt and img.zip"
    places = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
    listed = next((root / place for place in places if (root / place).is_file()), None)
    if listed is None:
        _folder(name, root, (), places[:1] + ("img",), archive)
    assert listed is not None
    holders = (root, root / "Img", root / "Img" / "img")
    holder = next((place for place in holders if (place / "img").is_dir()), None)
    if holder is None:
        _folder(name, root, (), ("img",), archive, "Img/img")
    assert holder is not None
    columns = ("image_name", "item_id", "evaluation_status")
    rows = _columns(listed, columns, header=("the number of images", " ".join(columns)))
    count = listed.read_text(errors="replace").split(maxsplit=1)[0]
    if count != str(len(rows)):
        raise Refusal(
            f"{listed}: expected {count} images, as its first line says, got {len(rows)}; it was "
            "cut off: fetch it again"
        )
    number = {item: k for k, item in enumerate(sorted({item for _, item, _ in rows}))}
    files: dict[str, list[tuple[Path, int]]] = {"train": [], "query": [], "gallery": []}
    for image, item, status in rows:
        if status not in files:
            raise Refusal(
                f"{listed}: evaluation_status: expected train, query or gallery, got {status!r} "
                f"for {image}"
            )
        files[status].append((holder / image, number[item]))
    empty = [status for status, some_files in files.items() if not some_files]
    if empty:
        raise Refusal(
            f"{listed}: evaluation_status: expected images to train, to query and in the gallery, "
            f"got none of {' and none of '.join(empty)}; fetch it again"
        )
    parts = {status: _there(holder, listed, some_files) for status, some_files in files.items()}
    for status in ("query", "gallery"):
        _no_class_in_both(listed, parts["train"], parts[status])
    ks = (1, 10, 20, 30)
    return Benchmark("inshop", parts["train"], parts["query"], parts["gallery"], ks)


LAYOUTS: dict[str, Callable[[Path], Benchmark]] = {
    "cub": cub,
    "cars": cars,
    "sop": sop,
    "inshop": inshop,
}


def _folder(
    name: str,
    root: Path,
    below: tuple[str, ...],
    wanted: tuple[str, ...],
    archive: str,
    other: str | None = None,
) -> Path:
    """The one that has what is wanted: the root, or where the archive puts it."""
    if not root.is_dir():
        raise Refusal(f"--root: expected the folder of {name}, got {str(root)!r}, which is none")
    folders = [root, *(root / part for part in below)]
    for folder in folders:
        if all((folder / part).exists() for part in wanted):
            return folder
    best = max(folders, key=lambda f: sum((f / part).exists() for part in wanted))
    missing = [part for part in wanted if not (best / part).exists()]
    there = sorted(path.name for path in best.iterdir()) or ["nothing"]
    also = f" (or {other})" if other else ""
    raise Refusal(
        f"--root: expected {', '.join(wanted)}{also} of {name} in {best}, got no "
        f"{' and no '.join(missing)}, only {some(there, 6)}; unpack {archive} there"
    )


def _columns(path: Path, names: tuple[str, ...], header: tuple[str, ...] = ()) -> list[list[str]]:
    """Rows of a text file, split at whitespace, below its header, whose last line is the names."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise Refusal(f"{path}: expected a text file, got {error}; fetch it again") from error
    above, lines = lines[: len(header)], lines[len(header) :]
    if header and (len(above) < len(header) or above[-1].split() != header[-1].split()):
        raise Refusal(
            f"{path}: expected above its rows {', then '.join(map(repr, header))}, got "
            f"{', then '.join(map(repr, above)) or 'nothing'}; fetch it again"
        )
    rows = [line.split(maxsplit=len(names) - 1) for line in lines if line.strip()]
    wrong = next((k for k, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None:
        raise Refusal(
            f"{path}: expected {len(names)} columns ({' '.join(names)}), got "
            f"{' '.join(rows[wrong])!r} in row {wrong + 1} below the header; fetch it again"
        )
    if not rows:
        raise Refusal(f"{path}: expected rows of {' '.join(names)}, got none; fetch it again")
    return [[column.strip() for column in row] for row in rows]


def _whole(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refusal(f"{path}: expected the number of a class, got {text!r}") from None


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = (path for path in root.iterdir() if path.is_dir() and _images_in(path))
    return sorted(found, key=_by_number)


def _by_number(folder: Path) -> tuple[str, int, str]:
    """Class 2 before class 10. Names of models, which end in a year, stay in the order of text; it
    is not the released one, but the first half ends with Eagle, and FIAT is 99th, in either.
    """
    words = folder.name.rstrip("0123456789")
    return words, int(folder.name[len(words) :] or -1), folder.name


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _there(folder: Path, listed: Path, files: Iterable[tuple[Path, int]]) -> Files:
    """Those files, if all are there."""
    files = list(files)
    twice = [str(path) for path, times in Counter(path for path, _ in files).items() if times > 1]
    if twice:
        raise Refusal(
            f"{listed}: expected each image once, got {len(twice)} of them more often: "
            f"{some(twice)}; fetch it again"
        )
    missing = [str(path) for path, _ in files if not path.is_file()]
    if missing:
        raise Refusal(
            f"{listed}: expected its {len(files)} images to be there, got no file for "
            f"{len(missing)} of them: {some(missing)}; unpack the images again, to the end"
        )
    return Files(folder, [path for path, _ in files], [label for _, label in files])


def _halves(
    name: str, folder: Path, listed: Path, files: list[tuple[Path, int]], ks: tuple[int, ...]
) -> Benchmark:
    classes = sorted({label for _, label in files})
    if len(classes) < 2:
        raise Refusal(
            f"{listed}: expected at least 2 classes, one to train and one to retrieve, got "
            f"{len(classes)}"
        )
    first = set(classes[: len(classes) // 2])
    _there(folder, listed, files)
    train = _there(folder, listed, [file for file in files if file[1] in first])
    test = _there(folder, listed, [file for file in files if file[1] not in first])
    return Benchmark(name, train, test, None, ks)


def _no_class_in_both(listed: Path, train: Images, test: Images) -> None:
    both = sorted(set(train.labels) & set(test.labels))
    if both:
        raise Refusal(
            f"{listed}: expected classes that train and others that are retrieved, got "
            f"{len(both)} in both: {some([str(label) for label in both])}"
        )
