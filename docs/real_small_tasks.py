"""The tasks of docs/real_small.md, registered as README shows; files as `python -m benchmarks.real_small split` writes them."""

from mpt_jax import tasks

SINGLE = "sentence: {sentence}"
ROWS = {  # name: template, labels in the order of their numbers, score
    "sst2": (SINGLE, ("negative", "positive"), "accuracy"),
    "ag_news": ("title: {title} text: {description}", ("world", "sports", "business", "technology"), "accuracy"),
    "qnli_small": ("question: {question} sentence: {sentence}", ("entailment", "not_entailment"), "accuracy"),
    "mrpc": ("sentence1: {sentence1} sentence2: {sentence2}", ("not_equivalent", "equivalent"), "accuracy"),
    "subjectivity": (SINGLE, ("objective", "subjective"), "accuracy"),
    "cola": (SINGLE, ("unacceptable", "acceptable"), "matthews"),
    "rte": ("premise: {premise} hypothesis: {hypothesis}", ("entailment", "not_entailment"), "accuracy"),
    "cb": ("premise: {premise} hypothesis: {hypothesis}", ("entailment", "contradiction", "neutral"), "accuracy"),
}
SPLITS = ("train", "validation", "test")

for name, (template, labels, score) in ROWS.items():
    files = {split: f"real_small/{name}/{split}.jsonl" for split in SPLITS}
    tasks.jsonl(f"small_{name}", files=files, template=template, labels=labels, score=score)
