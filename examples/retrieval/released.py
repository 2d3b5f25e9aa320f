"""How large the benchmarks are as released: a folder that lost some images has other scores."""

from examples.retrieval.layouts import Benchmark

# Parts, and the number of their images and of their classes.
RELEASED: dict[str, tuple[tuple[tuple[str, ...], int, int], ...]] = {
    "cub": ((("train", "query"), 11788, 200),),
    "cars": ((("train", "query"), 16185, 196),),
    "sop": ((("train",), 59551, 11318), (("query",), 60502, 11316)),
    "inshop": ((("train",), 25882, 3997), (("query", "gallery"), 26830, 3985)),
}


def other_than_released(benchmark: Benchmark) -> str | None:
    """What is said of a benchmark that has other numbers of images or classes."""
    found = []
    for parts, images, classes in RELEASED.get(benchmark.name, ()):
        there = [benchmark.parts[part] for part in parts if part in benchmark.parts]
        labels = [label for part in there for label in part.labels]
        has = len(labels), len(set(labels))
        if has != (images, classes):
            found.append(
                f"{' and '.join(parts)}: {has[0]:,} images of {has[1]:,} classes, not the released "
                f"{images:,} images of {classes:,} classes"
            )
    if not found:
        return None
    return "\n".join([*found, "so scores are those of another benchmark"])
