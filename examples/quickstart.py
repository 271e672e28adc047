# %% [markdown]
# # Each method at work
#
# A tiny BERT learns to score how alike two sentences are, once with each method of this project. The task is
# made up on the spot; nothing is downloaded. A few minutes on two cores. One short run can show
# what a method *needs*: parameters, memory, time. Which one scores better, several seeds must tell.

# %%
import sys
from contextlib import redirect_stdout

from glue_harness import open_run, parse_mapping, run
from glue_harness.cost.profiling import profile_step

EPOCHS = 10
COMMON = {
    "task": "demo-similarity",
    "model": "demo",
    # With dropout so small a model does not learn to compare words with most seeds.
    "model_config": {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    "epochs": EPOCHS,
    "batch_size": 16,
    "warmup": 0.1,
    "seed": 42,
}
ADAMW = {"optimizer": {"name": "adamw", "lr": 2e-3}}
METHODS = {
    "AdamW": ADAMW,
    "SAGE-AdamW": {"optimizer": {"name": "sage-adamw", "lr": 2e-3}},
    "clipped Adam": {"optimizer": {"name": "clipped-adam", "lr": 2e-3, "quantile": 0.5}, "max_grad_norm": 0},
    "AdamW + AGNI": {**ADAMW, "gradient": {"name": "agni", "eta": 0.1}, "accumulate": 2, "batch_size": 8},
    "AdamW, lossless": {**ADAMW, "activation": {"name": "compress", "level": "lossless"}},
    "AdamW, 4 bits": {**ADAMW, "activation": {"name": "compress", "level": "L1"}},
    "AdamW, LoRA": {"optimizer": {"name": "adamw", "lr": 1e-2}, "adaptation": "lora"},
}

# %% [markdown]
# ## Train
#
# The same as seven times `glue-harness run` with other options. Each run has a folder: its settings, its
# metrics, the model. A run that is finished is not made again.

# %%
results, configs = {}, {}
for name, methods in METHODS.items():
    settings = {**COMMON, **methods, "output_dir": f"runs/quickstart/{name}"}
    configs[name] = parse_mapping(settings)
    with redirect_stdout(sys.stderr):
        results[name] = run(configs[name])

# %% [markdown]
# ## What each one needs
#
# Bytes and milliseconds of one training step on full rows of 128 tokens, measured one after the other.

# %%
columns = ("trained", "kept for backward", "optimizer state", "ms a step", "pearson")
print("{:16} {:>8} {:>18} {:>16} {:>10} {:>8}".format("", *columns))
for name, config in configs.items():
    step = profile_step(config, "cpu", repeats=3)
    trained = results[name]["parameters"]["trainable"]
    kept, state = (step["bytes"][what] / 1e6 for what in ("activations", "optimizer"))
    time, score = 1000 * step["seconds"]["step"], results[name]["metrics"]["last"]["pearson"]
    print(f"{name:16} {trained:8,} {kept:15.2f} MB {state:13.2f} MB {time:10.1f} {score:8.3f}")
print("The scores are of 1 seed: they cannot tell which method is better.")

# %% [markdown]
# ## Use the best one
#
# Pairs of sentences get a score: 0 where nothing is shared, more the more is.

# %%
best = max(results, key=lambda name: results[name]["metrics"]["last"]["pearson"])
trained = open_run(configs[best].output_dir)
pairs = [
    ("The old dog sleeps.", "The young dog sleeps."),
    ("The old dog sleeps.", "The young dog waits."),
    ("The old dog sleeps.", "The small baker jumps."),
]
for pair, said in zip(pairs, trained.predict(pairs), strict=True):
    print(f"{said['score']:5.2f}  {pair[0]} / {pair[1]}")

# %% [markdown]
# ## Next
#
# Compare two optimizers over seeds, and put the runs side by side as a table, charts and a page:

# %%
print("""Next:
  glue-harness sweep examples/quickstart.yaml --output-dir runs/sweep   # two optimizers, six seeds
  glue-harness report runs/sweep --output-dir runs/report""")
