"""The loop: one step after another, from wherever the last run stopped, until the tokens are used up.

A step is a pure function of (weights, moments, step, data cursor), the batch is a pure function of the cursor, and a state on
disk is either whole or ignored: that is why a run that was killed anywhere ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing import console
from penjing.contract import Job
from penjing.errors import ConfigError, GateError, InputError, Interrupted, fault
from penjing.files import canonical_json, disk_faults, hash_text, read_json, write_json
from penjing.train import distributed, exporting, metrics, model, optim, pipeline, shards, state, tensor
from penjing.train.assemble import assemble
from penjing.train.config import TrainConfig
from penjing.train.feed import Part, Place, Step, StreamLike, ahead, prepare_step
from penjing.train.guard import Guard, keep_batch
from penjing.train.held_out import HeldOut, bits_per_byte, denoiser_losses
from penjing.train.loss import Losses
from penjing.train.memory import memory_faults
from penjing.train.schedule import learning_rate
from penjing.train.shards import ShardSaver
from penjing.train.sinks import Sinks

VERSION = 1
CURVE_POINTS = 100


def train(config: TrainConfig, *, checkpoint: Path, stream: StreamLike, out: Path, job: Job, teacher: Path | None = None,
          held_out: HeldOut | None = None, validation: Any = None,
          identity: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Train `checkpoint` on `stream` and leave a plain Hugging Face checkpoint and train.json in `out`; gives its figures.

    `validation` is the stream that d-ul2 measures its denoisers on. Resumes from `out`/state; `identity` names the content of the
    inputs, and a state made from other content is refused.
    Raises Interrupted when `job.stop()` says so (the state is saved first), GateError when the loss stops being a number or
    spikes too often, InputError for inputs that changed or do not fit.
    """
    if (out / "train.json").is_file():
        shutil.rmtree(out / "state", ignore_errors=True)
        return _figures(read_json(out / "train.json"))
    run = Run(config, checkpoint=checkpoint, stream=stream, out=out, job=job, teacher=teacher, held_out=held_out,
              validation=validation, identity=dict(identity or {}))
    run.resume()
    run.go()
    return run.finish()


class Run:
    """A training run, as one of the processes that share it sees it."""

    def __init__(self, config: TrainConfig, *, checkpoint: Path, stream: StreamLike, out: Path, job: Job,
                 teacher: Path | None, held_out: HeldOut | None, validation: Any, identity: dict[str, str]) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.checkpoint, self.stream, self.out, self.job, self.held_out = (
            config, checkpoint, stream, out, job, held_out)
        self.world = distributed.start(config.parallel)
        self.identity = hash_text(canonical_json({
            "version": VERSION, "config": _identity_of(config), "stream": _plain(getattr(stream, "config", None)), **identity}))
        self.world.agree(self.identity, what="settings or inputs")
        self.device = self.world.device
        if not self.world.is_main:
            self.job = replace(job, metrics=None)
            console.configure(quiet=True)
        self.sinks = Sinks(self.job, out, wandb=config.wandb)
        if config.deterministic:
            distributed.be_deterministic(compiled=config.compile is True or self.device.type == "cuda")
        torch.manual_seed(config.seed)
        made = assemble(config, self.world, checkpoint=checkpoint, teacher=teacher)
        self.made, self.parameters, self.optimizer, self.objective, self.precision = (
            made, made.parameters, made.optimizer, made.objective, made.precision)
        self.sources: tuple[str, ...] = tuple(getattr(stream, "sources", ("all",)))
        self.guard = Guard(config.guard)
        self.saver: state.Saver | ShardSaver = state.Saver(out / "state", keep=config.keep_states)
        if self.world.size > 1:
            self.saver = ShardSaver(out / "state", keep=config.keep_states, world=self.world)
        self.validation = validation
        self.shares: dict[str, Any] | None = getattr(stream, "initial_state", lambda: None)()
        """d-ul2's state: the denoisers' shares and from where on they hold."""
        if self.shares is not None and validation is None:
            raise ConfigError(fault("d-ul2 has nothing to measure its denoisers on", fix="give held_out tokens, or set "
                                    "held_out_percent"))
        self.place = Place(self.world.data_rank, self.world.data_ranks, self.world.context_rank, config.parallel.context,
                           self.world.context_group, config.parallel.pipeline, config.parallel.pipeline_chunks)
        self.step = 0
        """Steps done, dropped ones included."""
        self.cursor = 0
        """Next batch of the stream; ahead of `step` after a roll-back."""
        self.tokens = 0
        self.updates = 0
        """Updates AdamW made."""
        self.skipped: list[int] = []
        self.curve: list[dict[str, float]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.window = metrics.Tally(len(self.sources))
        """Since the last point of the curve."""
        self.tail = metrics.Tally(len(self.sources))
        """Over the last twentieth of the run."""
        self.loss_scale = config.loss_scale if self.precision == "fp16" else 1.0
        self._good_since_scale = 0
        self._stop = False

    def resume(self) -> None:
        """Go on from the newest good state, if there is one."""
        found = self._newest()
        if found is None:
            return
        if found.facts["identity"] != self.identity:
            raise InputError(fault("the saved state belongs to other settings or inputs", where=found.path,
                                   fix="the settings, the checkpoint or the token shards changed since it was saved; remove "
                                   f"{self.out} to start again"))
        self._load(found)
        self.sinks.record(event="resumed", step=self.step, tokens=self.tokens)
        console.say(f"  resumed at step {self.step} ({self.tokens:,} of {self.config.tokens:,} tokens)")

    def _newest(self) -> state.Saved | None:
        """The newest good state, chosen by the main process for all; InputError where another process does not see it."""
        found = state.newest(self.out / "state") if self.world.is_main else None
        name = self.world.from_main(found.path.name if found else "")
        if self.world.is_main or not name:
            return found
        path = self.out / "state" / name
        if not (path / "state.json").is_file():
            raise InputError(fault("this process does not see the state that the main process goes on from", where=path,
                                   fix="put the output on storage that all machines share"))
        return state.Saved(path, read_json(path / "state.json"))

    def go(self) -> None:
        """Train until the tokens are used up."""
        self._peak, self._peak_source = metrics.peak_flops(self.device, model.PRODUCTS[self.precision])
        self._cost = metrics.cost_of(self.made.shape)
        self.sinks.record(event="start", step=self.step, precision=self.precision, peak=self._peak_source,
                        processes=self.world.size, parameters=self.made.total, trained=self.made.trained)
        with console.bar("train", total=self.config.tokens, unit="tokens") as bar:
            bar.done = float(self.tokens)
            while self.tokens < self.config.tokens:
                self._stretch(bar)

    def finish(self) -> dict[str, Any]:
        """Evaluate, export, write train.json and remove the state."""
        self.saver.wait()
        self.sinks.record(event="done", step=self.step, tokens=self.tokens, saving_stalled_s=round(self.saver.stalled_s, 4))
        if self.held_out is not None and (not self.evaluations or self.evaluations[-1]["step"] != self.step):
            self._evaluate()
        report = {
            "version": VERSION, "steps": self.step, "updates": self.updates, "tokens": self.tokens,
            "parameters": self.made.total,
            "trained_parameters": self.made.trained,
            "precision": self.precision, "final_loss": self.tail.loss, "final_loss_by_source": self.tail.by_source(self.sources),
            "skipped_steps": self.skipped, "curve": self.curve, "held_out": self.evaluations,
        }
        if any(self.tail.denoisers[1:, 1]):
            report["final_loss_by_denoiser"] = {str(key): value for key, value in self.tail.by_denoiser().items()}
        if self.shares is not None:
            report["denoiser_shares"] = self.shares["shares"]
        self._export(self.out)
        if self.world.is_main:
            with disk_faults(self.out):
                write_json(self.out / "train.json", report)
            shutil.rmtree(self.out / "state", ignore_errors=True)
        self.sinks.close()
        self.world.barrier()
        return _figures(report)

    def _export(self, out: Path) -> None:
        """A plain Hugging Face checkpoint of the weights as they are; all processes must call it."""
        weights = None
        if self.world.size > 1:
            weights = exporting.gather(self.made.models, self.world)
        if self.world.is_main:
            made = self.out / "state" / "export.tmp" if out != self.out else out
            with disk_faults(out):
                shutil.rmtree(self.out / "state" / "export.tmp", ignore_errors=True)
                exporting.export(self.made.models[0], made, source=self.checkpoint, weights=weights)
                if made != out:
                    shutil.rmtree(out, ignore_errors=True)
                    out.parent.mkdir(exist_ok=True)
                    made.rename(out)

    def _export_is_due(self, batch: Step) -> bool:
        config, every = self.config, self.config.export_every_tokens
        return (self.step in config.exports or (config.export_every is not None and self.step % config.export_every == 0)
                or (every is not None and self.tokens // every > (self.tokens - batch.real_tokens) // every))

    def _stretch(self, bar: console.Bar) -> None:
        """Steps from the cursor on, until the end or a roll-back."""
        feed = ahead(self._prepare, iter(range(self.cursor, 1 << 62)))
        try:
            clock = time.perf_counter()
            for batch in feed:
                if not self._one(batch, clock, bar):
                    return
                if self._export_is_due(batch):
                    self._export(self.out / "exports" / f"step-{self.step:08d}")
                clock = time.perf_counter()
                if self.tokens >= self.config.tokens:
                    return
                if self._stop:
                    self._save(wait=True)
                    raise Interrupted(f"stopped at step {self.step}; the same command goes on from there")
                moved = self.shares is not None and self.step % self.config.reweigh_every == 0
                if moved:
                    self._reweigh()
                if self.step % self.config.save_every == 0:
                    self._save()
                if moved:
                    return  # what was made ahead has the old shares
                if self.config.evaluate_every and self.held_out and self.step % self.config.evaluate_every == 0:
                    self._evaluate()
        finally:
            feed.close()  # type: ignore[attr-defined]
            if self.world.size == 1:
                self.saver.wait()

    def _prepare(self, index: int) -> Step:
        return prepare_step(self.stream, index, micro_rows=self.config.micro_rows, state=self.shares, place=self.place,
                            pin=self.device.type == "cuda")

    def _one(self, batch: Step, clock: float, bar: console.Bar) -> bool:
        """One step; False when the run was rolled back and the feed must start over."""
        lr = learning_rate(self.config, self.tokens)
        with memory_faults(self.config, batch, self.step):
            tally, loss, norm = self._gradients(batch)
        verdict = self.guard.judge(loss, norm)
        if verdict == "broken" and self.precision == "fp16" and math.isfinite(loss) and self.loss_scale > 1.0:
            self.loss_scale /= 2
            self._good_since_scale = 0
            self.sinks.record(event="overflow", step=self.step, loss_scale=self.loss_scale)
            verdict = "overflow"
        elif verdict == "broken":
            self._stop_broken(batch, loss, norm, lr)
        elif verdict == "spike":
            verdict = self._on_spike(batch, loss, norm)
            if verdict == "rolled back":
                return False
        if verdict == "fine":
            with memory_faults(self.config, batch, self.step):
                self._update(lr, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(batch, tally, lr, norm)
        self._report(batch, tally, loss, norm, lr, time.perf_counter() - clock, verdict)
        bar.advance(batch.real_tokens, loss=loss, lr=lr)
        return True

    def _gradients(self, batch: Step) -> tuple[metrics.Tally, float, float]:
        weight = max(batch.weight, 1e-9)
        share = self.loss_scale * self.world.copies / weight  # FSDP averages over its processes; we want the sum
        found = [(part, losses.total.detach(), losses.nll_T) for part, losses in self._backward(batch.parts, share)]
        if self.made.partial:
            tensor.join(self.made.partial, self.world)
        if self.config.trainable == "new-rows":
            optim.keep_new_rows(self.parameters.values(), self.config.new_rows_from or 0)
        if self.made.twins:
            pipeline.join_twins(self.made.twins, self.world.ends_group)
        norm = float(self.world.join_norms(optim.gradient_norm(self.made.own.values()))) / self.loss_scale
        total, tally = 0.0, metrics.Tally(len(self.sources))
        for part, sums, nll_T in found:  # looked at after the last part, so that a GPU is not waited for in between
            total += float(sums)
            tally.add(part, nll_T)
        figures = self.world.sum(np.concatenate([[total, float(self.job.stop())], tally.sources.ravel(), tally.denoisers.ravel()]))
        total, self._stop = float(figures[0]), bool(figures[1])
        tally.fill(figures[2:])
        return tally, total / weight, norm

    def _backward(self, parts: list[Part], share: float) -> Iterator[tuple[Part, Losses]]:
        """Gradients of all parts, one after another or through the pipeline; gives the losses that this process sees."""
        if isinstance(self.objective, pipeline.Pipeline):
            yield from self.objective.gradients([part.to(self.device) for part in parts], share)
            return
        for number, made in enumerate(parts):
            part = made.to(self.device)
            if self.world.copies > 1:  # gradients are reduced once, with the last part
                self.objective.set_requires_gradient_sync(number == len(parts) - 1)
            losses = self.objective(part, share=share)
            (losses.total * share).backward()
            yield made, losses

    def _update(self, lr: float, norm: float) -> None:
        factor = 1.0 / self.loss_scale
        if self.config.clip and norm > self.config.clip:
            factor *= self.config.clip / (norm + 1e-6)
        if factor != 1.0:
            optim.scale_gradients(self.parameters.values(), factor)
        optim.set_learning_rate(self.optimizer, lr)
        self.saver.settle()  # what is copied beside training must not change before it is copied
        self.optimizer.step()
        self.updates += 1
        if self.precision == "fp16" and self.config.loss_scale > 1:
            self._good_since_scale += 1
            if self._good_since_scale >= 1000:
                self.loss_scale, self._good_since_scale = min(self.loss_scale * 2, 2.0**24), 0

    def _advance(self, batch: Step, tally: metrics.Tally, lr: float, norm: float) -> None:
        before = self.tokens
        self.step += 1
        self.cursor = batch.index + 1
        self.tokens += batch.real_tokens
        self.window.merge(tally)
        if self.tokens > 0.95 * self.config.tokens:
            self.tail.merge(tally)
        every = self.config.tokens / CURVE_POINTS
        if before // every != self.tokens // every or self.tokens >= self.config.tokens:
            self.curve.append({"tokens": self.tokens, "loss": self.window.loss, "lr": lr,
                               "grad_norm": norm if math.isfinite(norm) else 0.0})  # it is not where fp16 overflowed
            self.window = metrics.Tally(len(self.sources))

    def _report(self, batch: Step, tally: metrics.Tally, loss: float, norm: float, lr: float, seconds: float,
                verdict: str) -> None:
        if self.step % self.config.log_every and verdict == "fine":
            return
        line: dict[str, Any] = {
            "step": self.step, "tokens": self.tokens, "loss": loss, "lr": lr, "grad_norm": norm, "seconds": round(seconds, 6),
            "tokens_per_s": batch.real_tokens / seconds, "memory_bytes": metrics.memory_bytes(self.device),
        }
        if self._cost is not None and self._peak:
            length = batch.parts[0].targets.shape[1] * self.config.parallel.context
            slots = sum(part.targets.numel() for part in batch.parts) * self.world.copies
            peak = self._peak * self.world.size
            line["mfu"] = self._cost.usual(slots, length) / seconds / peak
            line["mfu_strict"] = self._cost.strict(batch.real_tokens, batch.squares) / seconds / peak
            line["hfu"] = line["mfu"] * (4 / 3 if self.config.recompute == "full" else 1)
        if len(self.sources) > 1:
            line |= {f"loss/{name}": value for name, value in tally.by_source(self.sources).items()}
        line |= {f"loss/denoiser_{number}": value for number, value in tally.by_denoiser().items() if number}
        if verdict != "fine":
            line["verdict"] = verdict
        if not math.isfinite(norm):
            del line["grad_norm"]
        self.sinks.record(**line)

    def _on_spike(self, batch: Step, loss: float, norm: float) -> str:
        action = self.config.guard.on_spike
        self.sinks.record(event="spike", step=self.step, cursor=batch.index, loss=loss, grad_norm=norm, action=action)
        console.say(f"  step {self.step}: spike (loss {loss:.4g}, gradient norm {norm:.4g}); {action}")
        if action == "off":
            self.guard.accept(loss, norm)
            return "fine"
        self.skipped.append(self.step)
        if self.guard.note_skip(self.step):
            self._save(wait=True)
            raise GateError(fault("too many spikes", where=f"step {self.step}", found=f"{self.config.guard.max_skipped + 1} "
                                  f"within {self.config.guard.window} steps", fix="lower lr, lengthen the warm-up, or look at "
                                  "the data; guard.on_spike: off ignores spikes"))
        if action == "skip":
            return "skipped"
        self.saver.wait()
        found = self._newest()
        if found is None:
            return "skipped"  # nothing to go back to yet
        skipped, judged, shares = list(self.skipped), self.guard.state()["skipped"], self.shares
        self.optimizer.zero_grad(set_to_none=True)
        self._load(found)
        self.skipped, self.shares = skipped, shares
        self.guard.restore({**self.guard.state(), "skipped": judged})
        self.cursor = batch.index + 1
        self._save(wait=True)  # a crash from here on must not lead into the same data again
        self.sinks.record(event="rolled back", step=self.step, cursor=self.cursor)
        return "rolled back"

    def _stop_broken(self, batch: Step, loss: float, norm: float, lr: float) -> None:
        place = self.out / "state" / f"bad-step-{self.step:08d}"
        if self.world.is_main:
            keep_batch(place, batch.batch, {"step": self.step, "cursor": batch.index, "loss": loss, "grad_norm": norm, "lr": lr})
        self.sinks.record(event="broken", step=self.step, loss=repr(loss), grad_norm=repr(norm))
        raise GateError(fault("the loss or its gradient is not a finite number", where=f"step {self.step}",
                              found=f"loss {loss}, gradient norm {norm}", fix=f"the batch is kept in {place}; the last saved "
                              "state is from before it; lower lr" + (", or use bf16" if self.precision == "fp16" else "")))

    def _evaluate(self) -> None:
        assert self.held_out is not None
        scores = bits_per_byte(self.objective, self.held_out, device=self.device, tokens=self.config.evaluate_tokens)
        self.evaluations.append({"step": self.step, "tokens": self.tokens, "bits_per_byte": scores})
        self.sinks.record(event="evaluation", step=self.step, tokens=self.tokens,
                        **{f"bits_per_byte/{name}": value for name, value in scores.items()})

    def _reweigh(self) -> None:
        """Measure the seven denoisers on held-out texts and move the shares (D-UL2)."""
        losses = denoiser_losses(self.objective, self.validation, batches=self.config.reweigh_batches, device=self.device)
        self.shares = self.stream.next_state(self.shares, step=self.cursor, losses=losses)  # type: ignore[attr-defined]
        self.sinks.record(event="shares", step=self.step, shares=self.shares["shares"], denoiser_losses=losses)

    def _save(self, *, wait: bool = False) -> None:
        tensors = state.tensors_of(self.made.own, self.optimizer)
        self.saver.save(self.step, tensors, self._facts(), wait=wait)

    def _facts(self) -> dict[str, Any]:
        return {"identity": self.identity, "step": self.step, "cursor": self.cursor, "tokens": self.tokens,
                "updates": self.updates, "skipped": self.skipped, "curve": self.curve, "evaluations": self.evaluations,
                "guard": self.guard.state(), "window": self.window.state(), "tail": self.tail.state(),
                "loss_scale": self.loss_scale, "good_since_scale": self._good_since_scale,
                "shares": self.shares}

    def _load(self, found: state.Saved) -> None:
        self.saver.settle()
        tensors = state.tensors_of(self.parameters, self.optimizer)
        if self.world.size == 1 and (found.path / state.TENSORS).is_file():
            state.read_whole(found.path, tensors)
        else:
            shards.read(found.path, tensors, alone=self.world.size == 1)
        facts = found.facts
        self.step, self.cursor, self.tokens, self.updates = (facts[key] for key in ("step", "cursor", "tokens", "updates"))
        state.set_optimizer_step(self.optimizer, self.parameters, self.updates)
        self.skipped, self.curve, self.evaluations = facts["skipped"], facts["curve"], facts["evaluations"]
        self.shares = facts["shares"]
        self.guard.restore(facts["guard"])
        self.window.restore(facts["window"])
        self.tail.restore(facts["tail"])
        self.loss_scale, self._good_since_scale = facts["loss_scale"], facts["good_since_scale"]


def figures_of(out: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    return _figures(read_json(out / "train.json"))


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    last = report["held_out"][-1]["bits_per_byte"] if report["held_out"] else None
    return {**{key: report[key] for key in ("steps", "tokens", "parameters", "final_loss", "final_loss_by_source", "curve")},
            **({"bits_per_byte": last} if last is not None else {}), "skipped_steps": len(report["skipped_steps"])}


def _identity_of(config: TrainConfig) -> dict[str, Any]:
    """Settings that decide the result; how often to log or save, and the layout, do not."""
    free = {"save_every", "keep_states", "log_every", "wandb", "threads", "parallel", "compile", "recompute", "exports",
            "export_every", "export_every_tokens"}
    return config.model_dump(mode="json", exclude=free)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else repr(value) if value is not None else None
