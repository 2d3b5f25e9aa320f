"""The four benchmarks of the Multi-Similarity paper as a trainer: python -m examples.retrieval

`train` trains on a benchmark's images and evaluates, `evaluate` scores a checkpoint, `check`
decodes every image; --help says more, and docs/retrieval.md walks through it.

layouts.py    the released folders of CUB-200-2011, Cars196, Stanford Online Products and In-Shop
released.py   how large they are as released
glyphs.py     a data set that pip can bring: characters in a hundred fonts
images.py     what an image is, how it is decoded, cropped and flipped
sampler.py    batches of classes x images
model.py      backbone, linear head, L2
criterion.py  the losses of the family, with memory and across processes
train.py      the loop
stopping.py   what Ctrl-C and a request to terminate do
processes.py  what several processes do differently
board.py      TensorBoard
checkpoint.py what a run needs to go on as if it had never stopped
evaluate.py   embeddings of all test images, and their scores
report.py     table and picture
dry_run.py    all of it on tiny data sets in each layout
"""
