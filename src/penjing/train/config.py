"""Settings of a training run. Everything is sized in tokens; defaults are Ziya2's where the paper gives them.

Ziya2 (arXiv 2311.03301, section 3.2): AdamW betas 0.9/0.95, weight decay 0.1, clip 1.0, warm-up over 1% of the run, cosine.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from penjing.config import Config

PLAIN_CHUNK = 2048
"""Positions whose logits exist at one time where the settings do not say and no compiled kernel makes more cheap."""


class DistilConfig(Config):
    """Learning from a teacher's distribution beside (or instead of) the labels."""

    weight: float = Field(0.5, ge=0.0, le=1.0)
    """Share of the distillation loss; the labels get the rest. 1 ignores the labels."""
    temperature: float = Field(1.0, gt=0.0)
    """Both distributions are softened by this; the loss is multiplied by its square, as in Hinton et al. 2015."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(teacher ‖ student), covers what the teacher knows. `reverse`: KL(student ‖ teacher), follows its modes."""


class GuardConfig(Config):
    """What to do when a step is not like the others."""

    spike_sigma: float = Field(6.0, gt=0.0)
    """A step whose loss or gradient norm lies this many standard deviations above the mean of the window is a spike."""
    window: int = Field(128, ge=8)
    """Accepted steps the mean and deviation are taken over; no step is judged before the window is half full."""
    min_ratio: float = Field(1.5, ge=1.0)
    """A spike must also exceed the window's median by this factor, so that a very quiet window does not cry wolf."""
    on_spike: Literal["off", "skip", "rollback"] = "skip"
    """`skip`: the update is dropped. `rollback`: go back to the last saved state and pass over the data that led here."""
    max_skipped: int = Field(20, ge=0)
    """More spikes than this in one window stop the run: something is wrong with the data or the settings."""


class ParallelConfig(Config):
    """How many processes share the work, and how. The product must be the number of processes started."""

    replicate: int = Field(1, ge=1)
    """Copies of the whole (sharded) model: HSDP's outer dimension."""
    shard: int = Field(1, ge=1)
    """FSDP2: parameters, gradients and optimizer state are cut over this many processes (ZeRO-3, or ZeRO-2 below)."""
    tensor: int = Field(1, ge=1)
    """Tensor parallel: each matrix cut over this many processes, by the model's declared plan."""
    context: int = Field(1, ge=1)
    """Context parallel: each row is cut over this many processes, which show each other their keys and values. For rows too long
    for one process."""
    pipeline: int = Field(1, ge=1)
    """Pipeline parallel: the layers are cut over this many processes, and micro-batches flow through them (1F1B)."""
    pipeline_chunks: int = Field(1, ge=1)
    """Stretches of layers per process. Above 1 the schedule is interleaved 1F1B: less idle time, more messages."""
    reshard_after_forward: bool = True
    """True: ZeRO-3, parameters are gathered again for the backward pass. False: ZeRO-2, faster, more memory."""

    @property
    def world(self) -> int:
        """Processes needed."""
        return self.replicate * self.shard * self.context * self.tensor * self.pipeline

    @model_validator(mode="after")
    def _consistent(self) -> ParallelConfig:
        if self.pipeline_chunks > 1 and self.pipeline == 1:
            raise ValueError("pipeline_chunks needs pipeline above 1")
        return self


class TrainConfig(Config):
    """One training run over one stream of batches."""

    tokens: int = Field(gt=0)
    """How long to train, in tokens that are not padding."""
    lr: float = Field(1e-4, gt=0.0)
    """Peak learning rate."""
    final_lr_ratio: float = Field(0.1, ge=0.0, le=1.0)
    """The schedule ends at this share of the peak."""
    schedule: Literal["cosine", "wsd", "infinite", "constant"] = "cosine"
    """cosine; wsd = warm-up, stable, decay; infinite = warm-up, cosine cool-down to a constant that any later run goes on
    from, decay at the end; constant = after the warm-up."""
    warmup_tokens: int | None = Field(None, ge=0)
    """Tokens until the peak is reached, rising linearly from `rewarm_from_ratio`; default 1% of the run."""
    rewarm_from_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the peak the warm-up starts at: 0 for a fresh model, the previous run's final share to re-warm gently."""
    decay_tokens: int | None = Field(None, ge=0)
    """Tokens of the final decay of wsd and infinite; default 10% of the run. 0 keeps the stable rate to the end."""
    constant_lr_ratio: float = Field(0.5, gt=0.0, le=1.0)
    """infinite: share of the peak held between cool-down and decay."""
    cooldown_tokens: int | None = Field(None, ge=0)
    """infinite: tokens of the cosine cool-down after the warm-up; default 40% of the run."""
    schedule_tokens: int | None = Field(None, gt=0)
    """Length of a schedule that spans several runs; default: this run's own tokens."""
    schedule_offset: int = Field(0, ge=0)
    """Tokens of that schedule already used by earlier runs."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Decoupled weight decay on matrices and embeddings; norms and biases get none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two decay rates."""
    eps: float = Field(1e-8, gt=0.0)
    """AdamW's epsilon."""
    clip: float = Field(1.0, ge=0.0)
    """Largest global gradient norm; 0 does not clip."""
    z_loss: float = Field(0.0, ge=0.0)
    """Weight of the mean squared log-partition of the logits (PaLM used 1e-4); keeps logits from drifting."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 multiply in 16 bits and keep weights, optimizer state, norms, RoPE, softmax and loss in 32. auto: bf16
    where the processor multiplies it natively, else fp32. fp16 scales the loss and can overflow: it is here for comparison."""
    loss_scale: float = Field(65536.0, ge=1.0)
    """fp16: the loss is multiplied by this at first; halved when a gradient overflows, doubled after 1,000 good steps. 1: never."""
    fp8: bool = False
    """Multiply the layers' matrices in 8 bits, scaled by row (torchao), on a GPU of compute capability 8.9 or more; with bf16."""
    micro_rows: int | None = Field(None, ge=1)
    """Rows per forward pass; gradients of a batch's parts are added up. Default: as many as hold about 16k tokens."""
    loss_chunk_tokens: int | None = Field(None, ge=1)
    """Positions whose logits exist at one time. Default: 2,048; where layers are compiled on a GPU and there is no teacher, as many as
    take about 1 GiB."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing: `full` keeps one tensor per layer, `selective` keeps the results of matrix products."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile each layer, after half a minute of compiling: about 20% faster on a processor, far more on a GPU. auto: on a GPU,
    when the run has more than 1e16 FLOPs to do, which take about as long."""
    trainable: str = "all"
    """What is trained: `all`; `embeddings` (input and output tables); `new-rows` (of those, only rows from `new_rows_from`
    on); `layers:FIRST-LAST`; `head`; or `re:PATTERN`, a regular expression on the parameter names."""
    new_rows_from: int | None = Field(None, ge=0)
    """First vocabulary row that is trained with `new-rows`."""
    distil: DistilConfig | None = None
    """How to learn from the teacher when one is given; default settings when absent."""
    guard: GuardConfig = GuardConfig()  # type: ignore[call-arg]
    """Spikes and non-finite steps."""
    parallel: ParallelConfig = ParallelConfig()  # type: ignore[call-arg]
    """Layout over processes; one process by default."""
    save_every: int = Field(200, ge=1)
    """Steps between saved states. Saving goes on beside training."""
    keep_states: int = Field(2, ge=1)
    """Saved states kept; the newest that reads back well is resumed from."""
    exports: tuple[int, ...] = ()
    """Steps after which a plain Hugging Face checkpoint is written to exports/step-…, beside the one at the end."""
    export_every: int | None = Field(None, ge=1)
    """Steps between such checkpoints."""
    export_every_tokens: int | None = Field(None, ge=1)
    """Tokens between such checkpoints: one after the step that reaches each multiple."""
    log_every: int = Field(1, ge=1)
    """Steps between lines in metrics.jsonl."""
    wandb: bool = False
    """Also write Weights & Biases' offline files."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations on the held-out tokens; default: only at the end."""
    evaluate_tokens: int | None = Field(None, ge=1)
    """Held-out tokens used per evaluation; default all."""
    reweigh_every: int = Field(200, ge=1)
    """d-ul2: steps between measurements of the seven denoisers, after which their shares move."""
    reweigh_batches: int = Field(4, ge=1)
    """d-ul2: held-out batches per denoiser and measurement; the same texts for all seven, every time."""
    threads: int | None = Field(None, ge=1)
    """Threads per process; default as many as the processor has cores (or OMP_NUM_THREADS says)."""
    deterministic: bool = True
    """Ask for deterministic kernels: resuming is then bit-exact. Costs speed on a GPU, nothing on a processor."""
    seed: int = 0
    """Seed of whatever is random in training itself; the data has its own."""

    def settled(self, device: str, parameters: int) -> TrainConfig:
        """The same with `compile` decided for a model of so many parameters on a device of this type."""
        wanted = device == "cuda" and 6 * parameters * self.tokens > 1e16 if self.compile == "auto" else self.compile
        return self.model_copy(update={"compile": wanted})

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.trainable == "new-rows" and self.new_rows_from is None:
            raise ValueError("trainable: new-rows needs new_rows_from")
        known = self.trainable in ("all", "embeddings", "new-rows", "head")
        if not known and not self.trainable.startswith(("layers:", "re:")):
            raise ValueError("trainable must be all, embeddings, new-rows, head, layers:FIRST-LAST or re:PATTERN")
        if self.fp8 and self.precision not in ("auto", "bf16"):
            raise ValueError("fp8 goes with precision bf16 or auto")
        if self.fp8 and self.parallel.tensor > 1:
            raise ValueError("fp8 goes with parallel.shard, context and pipeline, not with parallel.tensor")
        if self.schedule_tokens is not None and self.schedule_offset + self.tokens > self.schedule_tokens:
            raise ValueError("schedule_offset + tokens must not exceed schedule_tokens")
        return self
